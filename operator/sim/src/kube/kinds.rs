//! The kinds that are served: the built-in ones that we use, and those of the CRDs handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use super::builtin::{self, BuiltIn};
use super::schema::{Schema, SchemaError};

/// What an object of a kind must look like.
#[derive(Debug)]
pub enum Shape {
    /// As its CRD says.
    Custom(Box<Schema>),
    /// As Kubernetes' own types say.
    BuiltIn(BuiltIn),
}

/// One kind at one version.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for core.
    pub group: String,
    /// `v1`, `v1alpha1`.
    pub version: String,
    /// `VirtualMachine`.
    pub kind: String,
    /// `virtualmachines`.
    pub plural: String,
    /// Whether objects lie in namespaces.
    pub namespaced: bool,
    /// Whether `/status` is served, and status written there alone.
    pub status: bool,
    /// Whether `metadata.generation` counts changes.
    pub generation: bool,
    /// Whether a PUT to a name that is not there creates.
    pub create_on_update: bool,
    /// Whether a PUT may leave resourceVersion out.
    pub unconditional_update: bool,
    /// Field selectors beyond name and namespace: `spec.hostName`.
    pub selectable: BTreeSet<String>,
    /// What its objects must look like.
    pub shape: Shape,
}

impl Kind {
    /// `group/version`, or `v1` alone for core.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `virtualmachines.stockade.dev`, as messages name it.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The key an object is stored under. Keys sort as etcd's do.
    #[must_use]
    pub fn key(&self, namespace: Option<&str>, name: &str) -> String {
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        }
    }
}

/// Index into [`Kinds`].
pub type KindId = usize;

/// All served kinds.
#[derive(Debug)]
pub struct Kinds {
    all: Vec<Kind>,
    by_resource: BTreeMap<(String, String, String), KindId>,
    /// Namespaces, which every namespaced object needs.
    pub namespaces: KindId,
}

impl Kinds {
    /// The built-in kinds and those of `crds`, each at its storage version.
    ///
    /// # Errors
    /// A schema that is not served.
    pub fn new(crds: &[CustomResourceDefinition]) -> Result<Self, SchemaError> {
        let mut all = builtin::kinds();
        for crd in crds {
            all.push(custom(crd)?);
        }
        let by_resource = all
            .iter()
            .enumerate()
            .map(|(id, k)| ((k.group.clone(), k.version.clone(), k.plural.clone()), id))
            .collect();
        let namespaces = all.iter().position(|k| k.kind == "Namespace").unwrap_or_default();
        Ok(Self { all, by_resource, namespaces })
    }

    /// The built-in kinds and Stockade's own, made once a process.
    ///
    /// # Errors
    /// A schema that is not served.
    pub fn ours() -> Result<Arc<Self>, SchemaError> {
        static OURS: OnceLock<Result<Arc<Kinds>, SchemaError>> = OnceLock::new();
        // On a thread of its own: the first run of a process draws no more random numbers for it
        // than the others do.
        let make = || Self::new(&stockade_crds::all_crds()).map(Arc::new);
        OURS.get_or_init(|| {
            std::thread::scope(|scope| match scope.spawn(make).join() {
                Ok(made) => made,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
        .clone()
    }

    /// The kind of that path.
    #[must_use]
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<KindId> {
        self.by_resource.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).copied()
    }

    /// The first kind of that name; a group decides where two kinds share it.
    #[must_use]
    pub fn by_name(&self, kind: &str, group: Option<&str>) -> Option<KindId> {
        self.all.iter().position(|k| k.kind == kind && group.is_none_or(|g| g == k.group))
    }

    /// The kind that `object` says it is.
    #[must_use]
    pub fn of(&self, object: &Value) -> Option<KindId> {
        let (kind, version) = (object["kind"].as_str()?, object["apiVersion"].as_str()?);
        self.all.iter().position(|k| k.kind == kind && k.api_version() == version)
    }

    /// The kind with that index.
    #[must_use]
    pub fn get(&self, id: KindId) -> &Kind {
        &self.all[id]
    }

    /// All kinds with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (KindId, &Kind)> {
        self.all.iter().enumerate()
    }
}

fn custom(crd: &CustomResourceDefinition) -> Result<Kind, SchemaError> {
    let spec = &crd.spec;
    let error = |problem: &str| SchemaError {
        kind: spec.names.kind.clone(),
        path: String::new(),
        problem: problem.to_owned(),
    };
    let version =
        spec.versions.iter().find(|v| v.storage).ok_or_else(|| error("no storage version"))?;
    let schema = version
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref())
        .ok_or_else(|| error("no schema"))?;
    let schema = serde_json::to_value(schema).map_err(|e| error(&e.to_string()))?;
    let names = (spec.group.as_str(), version.name.as_str(), spec.names.kind.as_str());
    let selectable = version.selectable_fields.iter().flatten();
    Ok(Kind {
        group: spec.group.clone(),
        version: version.name.clone(),
        kind: spec.names.kind.clone(),
        plural: spec.names.plural.clone(),
        namespaced: spec.scope == "Namespaced",
        status: version.subresources.as_ref().is_some_and(|s| s.status.is_some()),
        generation: true,
        create_on_update: false,
        unconditional_update: false,
        selectable: selectable.map(|f| f.json_path.trim_start_matches('.').to_owned()).collect(),
        shape: Shape::Custom(Box::new(Schema::compile(&schema, names)?)),
    })
}
