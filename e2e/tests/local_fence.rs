//! The real fence runner: Debian's fence_ipmilan against a BMC of OpenIPMI on loopback.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use stockade_crds::v1alpha1::{FenceAction, FenceDeviceSpec};
use stockade_e2e::bmc::{Bmc, LOGIN, toy_switch};
use stockade_host::fence::{ALLOWED, FenceAgents, FenceOptions};
use stockade_host::ports::{FenceCall, FenceRunner as _, Power};
use stockade_host::{HostError, HostResult};

fn call(port: u16, password: &str, action: FenceAction) -> FenceCall {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    FenceCall {
        device: "bmc-a".into(),
        spec: FenceDeviceSpec {
            agent: "fence_ipmilan".into(),
            parameters: map(&[
                ("ip", "127.0.0.1"),
                ("ipport", &port.to_string()),
                ("lanplus", "1"),
                ("cipher", "3"),
                ("power_wait", "0"),
            ]),
            plugs: map(&[("a", "1")]),
            secret: Some("bmc-password".into()),
            timeout_seconds: 15,
            ..FenceDeviceSpec::default()
        },
        plug: "1".into(),
        secret: map(&[("username", LOGIN), ("password", password)]),
        action,
    }
}

struct Desk {
    bmc: Bmc,
    agents: FenceAgents,
    _folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let switch = toy_switch(folder.path()).unwrap();
        let bmc = Bmc::start("bmc-a", folder.path(), &[switch.to_str().unwrap()]).unwrap();
        Self { bmc, agents: FenceAgents::new(FenceOptions::default()), _folder: folder }
    }

    async fn run(&self, action: FenceAction) -> HostResult<Option<Power>> {
        self.agents.run(&call(self.bmc.port(), self.bmc.password(), action)).await
    }
}

#[tokio::test]
async fn power_is_cut_read_back_and_given_again() {
    let desk = Desk::new();
    assert_eq!(desk.run(FenceAction::Status).await, Ok(Some(Power::On)));
    let started = Instant::now();
    assert_eq!(
        desk.run(FenceAction::Off).await,
        Ok(None),
        "an order that is obeyed proves nothing"
    );
    assert_eq!(desk.run(FenceAction::Status).await, Ok(Some(Power::Off)));
    println!("off and read back in {} ms", started.elapsed().as_millis());
    assert_eq!(desk.run(FenceAction::Off).await, Ok(None), "off already");
    assert_eq!(desk.run(FenceAction::On).await, Ok(None));
    assert_eq!(desk.run(FenceAction::Status).await, Ok(Some(Power::On)));
}

#[tokio::test]
async fn a_wrong_password_is_a_failure_that_says_so_without_the_password() {
    let desk = Desk::new();
    let wrong = call(desk.bmc.port(), "not-the-password", FenceAction::Status);
    let error = desk.agents.run(&wrong).await.unwrap_err();
    assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
    assert!(!error.to_string().contains("not-the-password"), "{error}");
    assert!(error.to_string().contains("exit code 1"), "{error}");
    let off = call(desk.bmc.port(), "not-the-password", FenceAction::Off);
    desk.agents.run(&off).await.unwrap_err();
    assert_eq!(desk.run(FenceAction::Status).await, Ok(Some(Power::On)), "it was not switched");
}

#[tokio::test]
async fn an_agent_that_hangs_is_killed_with_all_its_children_at_the_deadline() {
    // Bound, so that nothing refuses; read by nobody, so that nothing answers.
    let deaf = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let port = deaf.local_addr().unwrap().port();
    let mut off = call(port, "x", FenceAction::Off);
    off.spec.timeout_seconds = 1;
    let agents = FenceAgents::new(FenceOptions::default());
    let started = Instant::now();
    let error = agents.run(&off).await.unwrap_err();
    assert!(error.is_unknown(), "it may have been obeyed: {error:?}");
    assert!(error.to_string().contains("spec.timeoutSeconds"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(left_in_the_end(&format!("-p {port} ")).await, Vec::<String>::new());
    // Given up by us, it is killed too.
    off.spec.timeout_seconds = 30;
    let given_up = tokio::time::timeout(Duration::from_secs(2), agents.run(&off)).await;
    assert!(given_up.is_err(), "it still hangs");
    assert_eq!(left_in_the_end(&format!("-p {port} ")).await, Vec::<String>::new());
}

/// As [`left_with`], once those that were killed have had the time to end.
async fn left_in_the_end(text: &str) -> Vec<String> {
    for _ in 0..20 {
        if left_with(text).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    left_with(text)
}

/// The command lines of processes that hold a text.
fn left_with(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}

#[tokio::test]
async fn what_the_agent_does_not_know_or_must_not_be_told_is_refused_before_it_runs() {
    let agents = FenceAgents::new(FenceOptions::default());
    for (name, value, word) in [
        ("lanpuls", "1", "did you mean lanplus?"),
        ("password_script", "/bin/true", "not for a FenceDevice to set"),
        ("ipmitool_path", "/bin/true", "not for a FenceDevice to set"),
        ("debug_file", "/tmp/x", "not for a FenceDevice to set"),
        ("privlvl", "root", "write one of: callback, user, operator, administrator"),
    ] {
        let mut wrong = call(1, "x", FenceAction::Status);
        wrong.spec.parameters.insert(name.into(), value.into());
        let error = agents.run(&wrong).await.unwrap_err();
        assert!(matches!(error, HostError::Refused { .. }), "{error:?}");
        let field = format!("spec.parameters.{name}: ");
        assert!(error.to_string().contains(&field), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn only_agents_that_are_allowed_and_installed_are_run() {
    let agents = FenceAgents::new(FenceOptions::default());
    let mut other = call(1, "x", FenceAction::Status);
    for (agent, word) in [
        ("fence_sbd", "--fence-agent"),
        ("../bin/true", "--fence-agent"),
        ("fence_virt", "install the fence-agents package"),
    ] {
        other.spec.agent = agent.into();
        let error = agents.run(&other).await.unwrap_err();
        assert!(error.to_string().contains("spec.agent: "), "{error}");
        // fence_virt is of another package, which may be there.
        let told = error.to_string().contains(word) || agent == "fence_virt";
        assert!(told, "{error}");
    }
    // An agent that is allowed beside them must still be able to read the power back.
    let extra = FenceOptions { extra: ["fence_sbd".to_owned()].into(), ..FenceOptions::default() };
    other.spec.agent = "fence_sbd".into();
    let error = FenceAgents::new(extra).run(&other).await.unwrap_err();
    assert!(!error.to_string().contains("--fence-agent"), "{error}");
    assert!(ALLOWED.is_sorted());
}
