use super::*;

/// Documents in memory. The flag makes writes fail.
#[derive(Debug, Default)]
struct Memory {
    documents: Mutex<BTreeMap<String, Vec<u8>>>,
    full: std::sync::atomic::AtomicBool,
}

impl Memory {
    fn set_full(&self, full: bool) {
        self.full.store(full, std::sync::atomic::Ordering::Relaxed);
    }

    fn put(&self, bytes: Vec<u8>) {
        self.documents.lock().expect("no panic").insert(CLAIMS.into(), bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        self.read(CLAIMS).expect("readable").expect("a document")
    }
}

impl Storage for Memory {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.documents.lock().expect("no panic").get(name).cloned())
    }

    fn write(&self, name: &str, document: &[u8]) -> io::Result<()> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.documents.lock().expect("no panic").insert(name.into(), document.to_vec());
        Ok(())
    }
}

fn owner() -> Owner {
    Owner { node: "n1".into(), boot_id: "b1".into(), rules: Rules::ALL }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn block(uid: &str) -> KeptBlock {
    KeptBlock { uid: uid.into(), pool: ObjectReference { name: "p".into(), uid: "pu".into() } }
}

fn lease(sent: u64) -> LeaseWrite {
    LeaseWrite { sent: secs(sent), promise: secs(10), version: Some(5) }
}

const A: &str = "10.0.0.0/26";
const B: &str = "fd00::40/122";

/// A storage with two blocks, the Lease written at 100 s.
fn filled() -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    let disk = Disk::open(memory.clone(), owner(), secs(100));
    disk.saw_version(7);
    disk.wrote_lease(lease(100), 1).expect("written");
    disk.keep(net(A), block("ua"), "nu", 1).expect("written");
    disk.keep(net(B), block("ub"), "nu", 1).expect("written");
    memory
}

fn found(memory: &Arc<Memory>, owner: Owner, now: u64) -> Kept {
    Disk::open(memory.clone(), owner, secs(now)).kept()
}

#[test]
fn the_next_process_finds_what_was_kept() {
    let kept = found(&filled(), owner(), 105);
    let blocks = BTreeMap::from([(net(A), block("ua")), (net(B), block("ub"))]);
    let lease = Some(lease(100));
    let whole = Kept { node_uid: Some("nu".into()), lease, version: 7, alarm: false, blocks };
    assert_eq!(kept, whole);
    let fence = kept.fence(secs(10));
    assert!(fence.is_up(secs(109)) && !fence.is_up(secs(110)));
    assert!(!Kept::default().fence(secs(10)).is_up(secs(0)));
}

#[test]
fn an_upgrade_keeps_what_the_version_before_it_wrote() {
    let document = concat!(
        r#"{"format":1,"bootId":"b1","node":"n1","length":159,"checksum":10470819033045919636}"#,
        "\n",
        r#"{"nodeUid":"nu","lease":{"sentNanos":100000000000,"promiseNanos":10000000000},"#,
        r#""version":7,"blocks":{"10.0.0.0/26":{"uid":"ua","pool":{"name":"p","uid":"pu"}}}}"#,
    );
    let memory = Arc::new(Memory::default());
    memory.put(document.into());
    let lease = LeaseWrite { version: None, ..lease(100) };
    let blocks = BTreeMap::from([(net(A), block("ua"))]);
    let whole =
        Kept { node_uid: Some("nu".into()), lease: Some(lease), version: 7, alarm: false, blocks };
    assert_eq!(found(&memory, owner(), 105), whole);
}

#[test]
fn a_forgotten_block_is_off_the_disk_before_the_call_returns() {
    let memory = filled();
    let disk = Disk::open(memory.clone(), owner(), secs(105));
    disk.forget(net(A)).expect("written");
    assert_eq!(found(&memory, owner(), 105).blocks.into_keys().collect::<Vec<_>>(), [net(B)]);
    disk.begin_history(7, false).expect("written");
    assert!(!found(&memory, owner(), 105).alarm);
    disk.begin_history(7, true).expect("written");
    let kept = found(&memory, owner(), 105);
    assert!(kept.blocks.is_empty() && kept.alarm);
}

#[test]
fn a_block_that_cannot_be_forgotten_is_an_error_until_a_write_succeeds() {
    let memory = filled();
    let disk = Disk::open(memory.clone(), owner(), secs(105));
    memory.set_full(true);
    for _ in 0..2 {
        let error = disk.forget(net(A)).expect_err("the disk is full").to_string();
        assert!(error.contains("claims.json"), "{error}");
        assert!(found(&memory, owner(), 105).blocks.contains_key(&net(A)));
    }
    memory.set_full(false);
    disk.forget(net(A)).expect("written");
    assert!(!found(&memory, owner(), 105).blocks.contains_key(&net(A)));
}

#[test]
fn what_is_not_whole_or_not_of_this_node_and_boot_is_ignored() {
    let whole = filled().bytes();
    let ignored = |bytes: &[u8], owner: Owner| {
        let memory = Arc::new(Memory::default());
        memory.put(bytes.to_vec());
        let disk = Disk::open(memory.clone(), owner, secs(105));
        assert_eq!(disk.kept(), Kept::default(), "{}", String::from_utf8_lossy(bytes));
        // It stops nobody from writing a new one.
        disk.wrote_lease(lease(104), 1).expect("written");
    };
    for end in 0..whole.len() {
        ignored(&whole[..end], owner());
    }
    // The number of another format that is known reads the same.
    let number = whole.windows(9).position(|octets| octets == b"\"format\":");
    let number = number.expect("a format") + 9;
    for at in (0..whole.len()).filter(|at| *at != number) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        ignored(&damaged, owner());
    }
    let text = String::from_utf8(whole.clone()).expect("text");
    let format = |number: u32| format!("\"format\":{number}");
    for other in [FORMATS.start() - 1, FORMATS.end() + 1] {
        ignored(text.replacen(&format(FORMATS.end() - 1), &format(other), 1).as_bytes(), owner());
    }
    ignored(&whole, Owner { node: "n2".into(), ..owner() });
    ignored(&whole, Owner { boot_id: "b2".into(), ..owner() });
}

#[test]
fn the_rule_about_the_boot_id_has_a_switch() {
    let rules = Rules::ALL.without(Rule::DiskOfThisBoot);
    let careless = Owner { boot_id: "b2".into(), rules, ..owner() };
    assert_eq!(found(&filled(), careless, 105).blocks.len(), 2);
}

#[test]
fn blocks_do_not_outlive_the_promise() {
    assert_eq!(found(&filled(), owner(), 109).blocks.len(), 2);
    assert!(found(&filled(), owner(), 110).blocks.is_empty());
}

#[test]
fn a_new_term_forgets_the_blocks_in_the_document_that_renews_the_promise() {
    let memory = filled();
    let disk = Disk::open(memory.clone(), owner(), secs(105));
    disk.wrote_lease(lease(106), 1).expect("written");
    assert_eq!(found(&memory, owner(), 107).blocks.len(), 2, "the same term");
    disk.wrote_lease(lease(200), 2).expect("written");
    assert!(found(&memory, owner(), 200).blocks.is_empty());
    // Confirmed before the fence was down: no news in this term.
    disk.keep(net(A), block("ua"), "nu", 1).expect("nothing to write");
    assert!(found(&memory, owner(), 200).blocks.is_empty());
    disk.keep(net(A), block("ua"), "nu", 2).expect("written");
    assert_eq!(found(&memory, owner(), 200).blocks.len(), 1);
}

#[test]
fn blocks_of_another_node_object_and_of_a_lost_lease_are_forgotten() {
    let memory = filled();
    let disk = Disk::open(memory.clone(), owner(), secs(105));
    disk.keep(net(A), block("ua2"), "nu2", 1).expect("written");
    let kept = found(&memory, owner(), 105);
    assert_eq!(kept.node_uid.as_deref(), Some("nu2"));
    assert_eq!(kept.blocks, BTreeMap::from([(net(A), block("ua2"))]));
    disk.lost_lease().expect("written");
    let kept = found(&memory, owner(), 105);
    assert_eq!((kept.lease, kept.blocks.len()), (None, 0));
}

#[test]
fn the_highest_version_goes_with_the_lease_and_begins_anew_with_history() {
    let memory = filled();
    let disk = Disk::open(memory.clone(), owner(), secs(105));
    disk.saw_version(9);
    disk.saw_version(8);
    assert_eq!((disk.version(), found(&memory, owner(), 105).version), (9, 7));
    disk.wrote_lease(lease(105), 1).expect("written");
    assert_eq!(found(&memory, owner(), 105).version, 9);
    disk.begin_history(3, true).expect("written");
    assert_eq!((disk.version(), found(&memory, owner(), 105).version), (3, 3));
}
