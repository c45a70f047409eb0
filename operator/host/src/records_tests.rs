use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stockade-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn disk(&self) -> PathBuf {
        self.0.join("db.raw")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(epoch: i64, host: &str) -> OwnerRecord {
    OwnerRecord {
        cluster_id: "cluster".into(),
        vm_uid: "vm".into(),
        epoch,
        host_uid: host.into(),
        boot_id: format!("boot-of-{host}"),
        state: RecordState::Held,
    }
}

#[test]
fn of_many_hosts_that_take_an_epoch_exactly_one_gets_it() {
    let scratch = Scratch::new("race");
    let disk = scratch.disk();
    let winners: usize = std::thread::scope(|scope| {
        let disk = &disk;
        let hosts: Vec<_> = (0..16)
            .map(|n| scope.spawn(move || link(disk, &record(3, &format!("h{n}"))).unwrap()))
            .collect();
        let results = hosts.into_iter().map(|host| host.join().unwrap());
        results.filter(|linked| *linked == Linked::Created).count()
    });
    assert_eq!(winners, 1);
    let records = read_all(&disk).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].boot_id, format!("boot-of-{}", records[0].host_uid));
    assert_eq!(fs::read_dir(folder(&disk)).unwrap().count(), 1, "a temporary file was left");
}

#[test]
fn a_record_is_released_by_its_host_alone() {
    let scratch = Scratch::new("release");
    let disk = scratch.disk();
    link(&disk, &record(1, "h1")).unwrap();
    assert!(matches!(release(&disk, 1, "h2"), Err(HostError::Refused { .. })));
    assert_eq!(read_all(&disk).unwrap()[0].state, RecordState::Held);
    release(&disk, 1, "h1").unwrap();
    assert_eq!(read_all(&disk).unwrap()[0].state, RecordState::Released);
    assert!(matches!(release(&disk, 2, "h1"), Err(HostError::Failed { .. })));
}

#[test]
fn a_spoilt_record_still_counts_and_is_never_replaced() {
    let scratch = Scratch::new("spoilt");
    let disk = scratch.disk();
    link(&disk, &record(1, "h1")).unwrap();
    fs::write(record_path(&disk, 1), "{").unwrap();
    assert_eq!(read_all(&disk).unwrap()[0].state, RecordState::Unreadable);
    assert_eq!(link(&disk, &record(1, "h2")).unwrap(), Linked::Exists);
    assert!(matches!(release(&disk, 1, "h1"), Err(HostError::Refused { .. })));
}

#[test]
fn the_highest_record_is_never_removed() {
    let scratch = Scratch::new("highest");
    let disk = scratch.disk();
    link(&disk, &record(1, "h1")).unwrap();
    link(&disk, &record(2, "h2")).unwrap();
    assert!(matches!(remove_settled(&disk, 2), Err(HostError::Refused { .. })));
    remove_settled(&disk, 1).unwrap();
    assert_eq!(read_all(&disk).unwrap().len(), 1);
    assert!(is_claimed(&disk));
}

#[test]
fn what_lies_beside_a_disk_of_ours_is_nobody_elses() {
    let scratch = Scratch::new("beside");
    let disk = scratch.disk();
    link(&disk, &record(1, "h1")).unwrap();
    assert!(is_claimed(&scratch.0.join("db.raw.nvram")));
    assert!(is_claimed(&scratch.0.join("db.raw.stockade/1.json")));
    assert!(is_claimed(&scratch.0.join(".stockade/cluster")));
    std::os::unix::fs::symlink(scratch.0.join("db.raw.stockade/1.json"), scratch.0.join("x.raw"))
        .unwrap();
    assert!(is_claimed(&scratch.0.join("x.raw")), "by another name");
    for theirs in ["their.raw", "their.raw.nvram"] {
        assert!(!is_claimed(&scratch.0.join(theirs)), "{theirs}");
    }
}
