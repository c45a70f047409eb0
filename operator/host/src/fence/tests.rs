use std::collections::BTreeMap;

use stockade_crds::v1alpha1::{FenceAction, FenceDeviceSpec};

use super::metadata::{Content, Metadata};
use super::*;

/// The form that fencing.py prints, shortened.
const XML: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_try" shortdesc="x" >
<parameters>
<parameter name="action" unique="0" required="1"><content type="string" default="reboot" /></parameter>
<parameter name="ip" unique="0" required="1" obsoletes="ipaddr"><content type="string" /></parameter>
<parameter name="ipaddr" unique="0" required="1" deprecated="1"><content type="string" /></parameter>
<parameter name="ipport" unique="0" required="0"><content type="integer" default="623" /></parameter>
<parameter name="lanplus" unique="0" required="0"><content type="boolean" default="0" /></parameter>
<parameter name="password" unique="0" required="0"><content type="string" /></parameter>
<parameter name="password_script" unique="0" required="0"><content type="string" /></parameter>
<parameter name="plug" unique="0" required="1" obsoletes="port"><content type="string" /></parameter>
<parameter name="privlvl" unique="0" required="0"><content type="select" default="user">
<option value="user" /><option value="operator" /></content></parameter>
</parameters>
<actions><action name="on" automatic="0"/><action name="off" /><action name="status" /></actions>
</resource-agent>"#;

fn call(parameters: &[(&str, &str)], secret: &[(&str, &str)]) -> FenceCall {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    FenceCall {
        device: "bmc".into(),
        spec: FenceDeviceSpec {
            agent: "fence_try".into(),
            parameters: map(parameters),
            secret: Some("bmc-password".into()),
            ..FenceDeviceSpec::default()
        },
        plug: "7".into(),
        secret: map(secret),
        action: FenceAction::Off,
    }
}

#[test]
fn an_agents_description_of_itself_is_read() {
    let metadata = Metadata::read(XML).unwrap();
    assert_eq!(metadata.plug(), Some("plug"));
    assert_eq!(metadata.parameters["ipport"].content, Content::Number);
    assert_eq!(metadata.parameters["lanplus"].content, Content::Switch);
    assert!(metadata.parameters["ip"].required && !metadata.parameters["ipaddr"].required);
    assert!(metadata.actions.contains("status"));
    assert!(Metadata::read("fence_try: not found").is_err());
    assert!(Metadata::read("<resource-agent/>").unwrap_err().contains("no action"));
}

#[test]
fn an_agent_is_told_everything_on_its_standard_input() {
    let metadata = Metadata::read(XML).unwrap();
    let call = call(&[("ip", "10.0.0.1"), ("lanplus", "1")], &[("password", " a\"b\n")]);
    let text = input::text(&metadata, &call, "off").unwrap();
    assert_eq!(text, "action=off\nplug=7\nip=10.0.0.1\nlanplus=1\npassword=\" a\"b\"\n");
    let older = super::tests::call(&[("ipaddr", "10.0.0.1")], &[]);
    assert!(input::text(&metadata, &older, "off").is_ok(), "the older name does");
}

#[test]
fn wrong_parameters_are_all_named_with_field_and_remedy() {
    let metadata = Metadata::read(XML).unwrap();
    let call = call(
        &[
            ("lanpuls", "1"),
            ("lanplus", "maybe"),
            ("ipport", "x"),
            ("privlvl", "root"),
            ("password_script", "/bin/rm"),
            ("action", "on"),
            ("password", "x"),
        ],
        &[("password", "two\nlines=1"), ("nothing_like_it", "1")],
    );
    let why = input::text(&metadata, &call, "off").unwrap_err();
    for part in [
        "spec.parameters.lanpuls: fence_try has no such parameter; did you mean lanplus?",
        "spec.parameters.lanplus: write \"1\" or \"0\"",
        "spec.parameters.ipport: write a whole number",
        "spec.parameters.privlvl: write one of: user, operator",
        "spec.parameters.password_script: this is not for a FenceDevice to set",
        "spec.parameters.action: this is not for a FenceDevice to set",
        "key \"password\" of Secret \"bmc-password\": it holds a control character",
        "key \"nothing_like_it\" of Secret \"bmc-password\": fence_try has no such parameter; see",
        "spec.parameters.password: Secret \"bmc-password\" has it too",
        "spec.parameters.ip: fence_try needs it; set it",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[test]
fn an_agent_that_can_not_read_the_power_back_is_refused() {
    let mut metadata = Metadata::read(XML).unwrap();
    metadata.actions.remove("status");
    let why = input::text(&metadata, &call(&[("ip", "a")], &[]), "off").unwrap_err();
    assert!(why.contains("no action \"status\""), "{why}");
}

#[test]
fn power_is_read_only_where_code_and_words_agree() {
    let status = |code, out| answer::of(FenceAction::Status, code, out, "");
    assert_eq!(status(Some(0), "Status: ON\n"), Ok(Some(Power::On)));
    assert_eq!(status(Some(2), "Status: OFF\n"), Ok(Some(Power::Off)));
    for (code, out) in [
        (Some(0), "Status: OFF\n"),
        (Some(2), "Status: ON\n"),
        (Some(2), ""),
        (Some(0), ""),
        (Some(1), "Status: OFF\n"),
        (None, "Status: OFF\n"),
        (Some(0), "Status: PAUSED\n"),
    ] {
        assert!(status(code, out).is_err(), "{code:?} {out:?}");
    }
    assert_eq!(answer::of(FenceAction::Off, Some(0), "Success: Powered OFF\n", ""), Ok(None));
    assert!(
        answer::of(FenceAction::Off, Some(2), "", "").is_err(),
        "2 is an answer to status only"
    );
}

#[test]
fn what_an_agent_says_is_told_once_and_without_its_secret() {
    let err = "2026-11-25 13:59:49,990 ERROR: login with s3cret failed\n\n\n\
               2026-11-25 13:59:49,991 ERROR: login with s3cret failed\n\
               2026-11-25 13:59:49,991 ERROR: Please use '-h' for usage\n";
    let why = answer::of(FenceAction::Status, Some(1), "", err).unwrap_err();
    let why = answer::hide(&why, &call(&[], &[("password", "s3cret")]));
    assert_eq!(why, "login with *** failed (exit code 1)");
}
