//! What an agent says of itself: its parameters and actions, as XML (`-o metadata`).
//!
//! The form is the resource-agent XML of the fence agent API:
//! <https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md>.

use std::collections::{BTreeMap, BTreeSet};

/// What a parameter holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Any text.
    Text,
    /// A whole number, also of seconds.
    Number,
    /// A switch.
    Switch,
    /// One of these words.
    OneOf(Vec<String>),
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// What it holds.
    pub(super) content: Content,
    /// The agent can't work without it, and has no default.
    pub(super) required: bool,
    /// An older name of the same.
    pub(super) older: Option<String>,
}

/// An agent's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// By name.
    pub(super) parameters: BTreeMap<String, Parameter>,
    /// Names of its actions.
    pub(super) actions: BTreeSet<String>,
}

impl Metadata {
    /// Reads the XML.
    pub(super) fn read(xml: &str) -> Result<Self, String> {
        // Some agents print warnings of their interpreter before the XML.
        let start = xml.find('<').ok_or("its description is no XML")?;
        let document = roxmltree::Document::parse(&xml[start..])
            .map_err(|error| format!("its description is no XML: {error}"))?;
        let mut this = Self::default();
        for node in document.descendants().filter(roxmltree::Node::is_element) {
            let Some(name) = node.attribute("name").map(str::to_owned) else { continue };
            match node.tag_name().name() {
                "parameter" => {
                    this.parameters.insert(name, parameter(node));
                }
                "action" => {
                    this.actions.insert(name);
                }
                _ => {}
            }
        }
        if this.actions.is_empty() {
            return Err("its description names no action".to_owned());
        }
        Ok(this)
    }

    /// What takes the plug, if the agent has plugs at all.
    pub(super) fn plug(&self) -> Option<&'static str> {
        ["plug", "port"].into_iter().find(|name| self.parameters.contains_key(*name))
    }
}

fn parameter(node: roxmltree::Node<'_, '_>) -> Parameter {
    let content = node.children().find(|child| child.has_tag_name("content"));
    let has_default = content.is_some_and(|content| content.has_attribute("default"));
    let options = |content: roxmltree::Node<'_, '_>| {
        content
            .children()
            .filter(|child| child.has_tag_name("option"))
            .filter_map(|child| child.attribute("value").map(str::to_owned))
            .collect()
    };
    Parameter {
        content: match content.map(|c| (c, c.attribute("type").unwrap_or_default())) {
            Some((_, "integer" | "second")) => Content::Number,
            Some((_, "boolean")) => Content::Switch,
            Some((content, "select")) => Content::OneOf(options(content)),
            _ => Content::Text,
        },
        // Of two names for the same the newer one is asked for.
        required: node.attribute("required") == Some("1")
            && !has_default
            && node.attribute("deprecated") != Some("1"),
        older: node.attribute("obsoletes").map(str::to_owned),
    }
}
