//! Broken files for `cairn speaker -f`, at the start and later.

use rustix::process::Signal;

use crate::site::{Site, cairn, configuration, peer, refusal, until};

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";
const C: &str = "192.0.2.3";

#[test]
fn a_broken_file_is_refused_with_line_and_column() {
    let site = Site::new(&[A]);
    let good = configuration(65001, A.parse().expect("A"), &[peer("b", B, 65002, A, "")]);
    for (old, new, place, said) in [
        ("asn: 65001", "asn: many", "4:13", "expected a whole number from 0 to 4294967295"),
        ("topology: Disabled", "topology: Ring", "4:", "Ring"),
        ("asn: 65002", "as: 65002", "9:", "as"),
        (
            "address: 192.0.2.2",
            "address: tor",
            "6:1",
            "\"tor\" is no IP address: write one such as",
        ),
        ("{name: b}", "{name: b", "9:", ""),
        ("kind: BGPPeer", "kind: Peer", "6:1", "expected BGPConfiguration, BGPPeer"),
    ] {
        assert!(good.contains(old), "{old}");
        let file = site.write("broken.yaml", &good.replacen(old, new, 1));
        let mut command = cairn(["speaker", "-f"]);
        command.arg(&file);
        let text = refusal(&site.run(command));
        let place = format!("cairn: {}:{place}", file.display());
        assert!(text.starts_with(&place) && text.contains(said), "{place} {said}\n{text}");
    }
    let mut command = cairn(["speaker", "-f"]);
    command.arg(site.path("none.yaml"));
    let text = refusal(&site.run(command));
    assert!(text.contains("none.yaml: cannot be read: No such file"), "{text}");
}

#[test]
fn a_file_that_breaks_later_changes_nothing_and_a_good_one_only_what_differs() {
    let site = Site::new(&[A, B, C]);
    let to_b = peer("b", B, 65002, A, "");
    let good = configuration(65001, A.parse().expect("A"), std::slice::from_ref(&to_b));
    let file = site.write("a.yaml", &good);
    let mut a = site.speaker("a", &file);
    let to_a = |address: &str, asn| {
        configuration(
            asn,
            address.parse().expect("an address"),
            &[peer("a", A, 65001, address, "")],
        )
    };
    let _b = site.speaker("b", &site.write("b.yaml", &to_a(B, 65002)));
    let _c = site.speaker("c", &site.write("c.yaml", &to_a(C, 65003)));
    let first = site.until_established("a", "b");

    site.write("a.yaml", &good.replacen("asn: 65002", "asn: none", 1));
    a.signal(Signal::HUP);
    let screen = site.until_status("a", "the settings read before stay in force");
    let place = format!("{}:9:", file.display());
    assert!(screen.contains(&place) && screen.contains("sessions 1/1"), "{screen}");
    let errors = a.lines("ERROR");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains(&place), "{errors:?}");
    assert!(a.is_running());

    let both = [to_b, peer("c", C, 65003, A, "")];
    site.write("a.yaml", &configuration(65001, A.parse().expect("A"), &both));
    a.signal(Signal::HUP);
    site.until_established("a", "c");
    until("no problem is left", || {
        let screen = site.status("a");
        if screen.contains("problem") { Err(screen) } else { Ok(()) }
    });
    let now = site.session("a", "b");
    assert_eq!((&now["state"], &now["since"]), (&first["state"], &first["since"]));
    assert_eq!(a.lines("session down").len(), 0, "{}", a.log());
}

#[test]
fn two_speakers_do_not_share_a_run_directory() {
    let site = Site::new(&[A, B]);
    let file = site.write("a.yaml", &configuration(65001, A.parse().expect("A"), &[]));
    let first = site.speaker("a", &file);
    first.until_log("listening");
    let file = site.write("b.yaml", &configuration(65002, B.parse().expect("B"), &[]));
    let mut command = cairn(["speaker", "-f"]);
    command.arg(&file).arg("--run-dir").arg(site.path("a"));
    let text = refusal(&site.run(command));
    assert!(text.contains("another agent or speaker already answers on"), "{text}");
    assert!(text.contains("another --run-dir"), "{text}");
    assert!(site.status("a").contains("sessions 0/0"));
}
