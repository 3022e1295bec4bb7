//! Started by somebody who may not.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::site::{Site, configuration, refusal};

const NOBODY: u32 = 65534;

#[test]
fn without_root_one_sentence_says_what_is_missing() {
    let site = Site::new(&["192.0.2.1"]);
    // The build's directory may be closed to others.
    let program = site.path("cairn");
    std::fs::copy(env!("CARGO_BIN_EXE_cairn"), &program).expect("a copy");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("runs");
    let address = "192.0.2.1".parse().expect("an address");
    let file = site.write("a.yaml", &configuration(65001, address, &[]));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).uid(NOBODY).gid(NOBODY).env_remove("KUBECONFIG");
        command.current_dir(&site.dir);
        refusal(&site.run(command))
    };
    let run_dir = site.path("run").display().to_string();
    let text = run(&["agent", "--node-name", "n1", "--run-dir", &run_dir]);
    assert!(text.contains("cairn agent") && text.contains("run it as root"), "{text}");
    let text = run(&["speaker", "--fib", "-f", &file.display().to_string()]);
    assert!(text.contains("cairn speaker --fib") && text.contains("run it as root"), "{text}");
    let text = run(&["lab"]);
    assert!(text.contains("cairn lab") && text.contains("must run as root"), "{text}");
    let text = run(&["status", "--run-dir", &run_dir]);
    assert!(text.contains("is it running, and is --run-dir the same?"), "{text}");
}
