//! Row `fence`: off and read back through the controller's runner, beside fence_ipmilan with its
//! own defaults, on BMC simulators of this machine.

use std::process::{Command, Stdio};
use std::time::Instant;

use futures::future::try_join_all;
use stockade_crds::v1alpha1::{FenceAction, FenceDeviceSpec};
use stockade_e2e::bmc::{Bmc, LOGIN, toy_switch};
use stockade_host::fence::{FenceAgents, FenceOptions};
use stockade_host::ports::{FenceCall, FenceRunner as _, Power};

use crate::Options;
use crate::report::{Error, Figure, quantile};

/// Hosts of a rack that is cut at once.
const RACK: usize = 40;
/// Times that one host is cut.
const TIMES: usize = 20;

fn call(bmc: &Bmc, action: FenceAction) -> FenceCall {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let port = bmc.port().to_string();
    let parameters = [
        ("ip", "127.0.0.1"),
        ("ipport", port.as_str()),
        ("lanplus", "1"),
        ("cipher", "3"),
        ("power_wait", "0"),
    ];
    FenceCall {
        device: "bmc".to_owned(),
        spec: FenceDeviceSpec {
            agent: "fence_ipmilan".to_owned(),
            parameters: map(&parameters),
            timeout_seconds: 60,
            ..FenceDeviceSpec::default()
        },
        plug: "1".to_owned(),
        secret: map(&[("username", LOGIN), ("password", bmc.password())]),
        action,
    }
}

/// Off, then a reading of its own: the proof.
async fn cut(agents: &FenceAgents, bmc: &Bmc) -> Result<(), Error> {
    let run = async |action| {
        agents.run(&call(bmc, action)).await.map_err(|error| Error::Ours(error.to_string()))
    };
    run(FenceAction::Off).await?;
    match run(FenceAction::Status).await? {
        Some(Power::Off) => Ok(()),
        other => Err(Error::Ours(format!("it reads {other:?} after off"))),
    }
}

async fn on(agents: &FenceAgents, bmc: &Bmc) -> Result<(), Error> {
    let done = agents.run(&call(bmc, FenceAction::On)).await;
    done.map(drop).map_err(|error| Error::Ours(error.to_string()))
}

/// fence_ipmilan as its manual has it: off by default waits two seconds before it looks.
fn peers(bmcs: &[Bmc]) -> Result<f64, Error> {
    let started = Instant::now();
    let mut children = Vec::new();
    for bmc in bmcs {
        let port = bmc.port().to_string();
        let words = ["-a", "127.0.0.1", "-u", &port, "-P", "-C", "3", "-l", LOGIN];
        let child = Command::new("fence_ipmilan")
            .args(words)
            .args(["-p", bmc.password(), "-o", "off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        children.push(child);
    }
    for mut child in children {
        if !child.wait()?.success() {
            return Err(Error::Peer("fence_ipmilan did not cut the power".to_owned()));
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Measures the row.
///
/// # Errors
/// If a BMC or an agent fails.
pub fn run(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let folder = tempfile::tempdir()?;
        let mut bmcs = Vec::new();
        for index in 0..RACK {
            let own = folder.path().join(index.to_string());
            std::fs::create_dir(&own)?;
            let switch = toy_switch(&own)?;
            bmcs.push(Bmc::start(&format!("bmc-{index}"), &own, &[&switch.to_string_lossy()])?);
        }
        let agents = FenceAgents::new(FenceOptions::default());
        cut(&agents, &bmcs[0]).await?;
        on(&agents, &bmcs[0]).await?;
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for round in 0..TIMES {
            let started = Instant::now();
            cut(&agents, &bmcs[0]).await?;
            ours.push(started.elapsed().as_secs_f64());
            on(&agents, &bmcs[0]).await?;
            if options.peer && round < 5 {
                peer.push(peers(&bmcs[..1])?);
                on(&agents, &bmcs[0]).await?;
            }
        }
        figure("off and read back, one host", ours, peer, 0.5).print()?;
        let started = Instant::now();
        try_join_all(bmcs.iter().map(|bmc| cut(&agents, bmc))).await?;
        let ours = vec![started.elapsed().as_secs_f64()];
        try_join_all(bmcs.iter().map(|bmc| on(&agents, bmc))).await?;
        let peer = if options.peer { vec![peers(&bmcs)?] } else { Vec::new() };
        figure("off and read back, 40 hosts at once", ours, peer, 1.5).print()
    })
}

fn figure(figure: &'static str, mut ours: Vec<f64>, mut peer: Vec<f64>, goal: f64) -> Figure {
    Figure {
        row: "fence",
        figure,
        unit: "s",
        n: ours.len(),
        ours: quantile(&mut ours, 0.5),
        peer: (!peer.is_empty()).then(|| quantile(&mut peer, 0.5)),
        peer_name: Some("fence_ipmilan's defaults"),
        goal: Some(goal),
        ..Figure::default()
    }
}
