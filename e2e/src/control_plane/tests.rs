use super::audit::{Mark, parse, writes_since};
use super::identity::file_stem;
use super::nest::Nest;

#[test]
fn identities_never_share_a_file() {
    let a = file_stem("stockade:host:a", &["stockade:hosts"]);
    assert_eq!(a, "user_stockade%3ahost%3aa_stockade%3ahosts");
    assert_ne!(file_stem("a", &["b"]), file_stem("a_b", &[]));
    assert!(!file_stem("../../etc/passwd", &[]).contains('/'));
}

#[test]
fn a_write_is_read_with_its_subresource_and_dry_runs_are_none() {
    let line = |query: &str| {
        format!(
            r#"{{"verb":"patch","requestURI":"/apis/stockade.dev/v1alpha1/x{query}",
               "user":{{"username":"u"}},"responseStatus":{{"code":200}},
               "objectRef":{{"resource":"domains","namespace":"n","name":"d",
               "apiGroup":"stockade.dev","subresource":"status"}}}}"#
        )
    };
    let write = parse(&line("")).expect("a write");
    assert_eq!(
        (write.resource.as_str(), write.verb.as_str(), write.code),
        ("domains/status", "patch", 200)
    );
    assert_eq!(parse(&line("?dryRun=All")), None);
    assert_eq!(parse("{\"verb\":\"pat"), None, "a line that is still being written");
}

#[test]
fn no_log_is_no_write() {
    let nest = Nest::new().expect("nest");
    let log = nest.dir().join("audit.log");
    let mark: Mark = super::audit::mark(&log);
    assert_eq!(writes_since(&log, mark).expect("read"), vec![]);
}

#[test]
fn a_dropped_nest_takes_its_processes_and_its_folder_along() {
    let mut nest = Nest::new().expect("nest");
    nest.start("sleeper", std::process::Command::new("sleep").arg("600")).expect("start");
    nest.all_running().expect("it runs");
    let dir = nest.dir().to_owned();
    let pid = std::fs::read_to_string(dir.join("pids")).expect("pids");
    drop(nest);
    assert!(!dir.exists());
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn a_program_that_ended_is_named_with_its_last_words() {
    let mut nest = Nest::new().expect("nest");
    let mut command = std::process::Command::new("sh");
    nest.start("talker", command.args(["-c", "echo last words; exit 3"])).expect("start");
    let error = loop {
        match nest.all_running() {
            Ok(()) => std::thread::yield_now(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("talker") && error.contains("last words"), "{error}");
}
