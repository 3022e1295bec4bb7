//! kubectl as people use it. A machine without kubectl fails these tests; it does not skip them.

use std::path::PathBuf;
use std::process::Output;

use tokio::process::Command;

use super::*;

/// A directory of one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("cairn-lab-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Kubectl {
    world: World,
    scratch: Scratch,
}

impl Kubectl {
    async fn start(api: Api, name: &str) -> Kubectl {
        let scratch = Scratch::new(&format!("{name}-{api:?}"));
        Kubectl { world: World::start(api).await, scratch }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(["--server", &format!("http://{}", self.world.serving.address())])
            .args(["--cache-dir", self.scratch.0.join("cache").to_str().unwrap()])
            .args(args)
            .env("KUBECONFIG", "/dev/null")
            .env("HOME", &self.scratch.0)
            .kill_on_drop(true);
        command
    }

    async fn output(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().await;
        output.expect("kubectl must be installed to run these tests")
    }

    /// Runs kubectl, which must succeed without a warning, and returns what it printed.
    async fn run(&self, args: &[&str]) -> String {
        let output = self.output(args).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {errors}");
        assert_eq!(errors, "", "kubectl {args:?} warns");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl, which must fail, and returns its complaint.
    async fn fail(&self, args: &[&str]) -> String {
        let output = self.output(args).await;
        assert!(!output.status.success(), "kubectl {args:?} should fail");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn manifest(name: &str, cidr: &str) -> String {
    format!(
        "apiVersion: test.cairn.network/v1alpha1\nkind: Pool\nmetadata:\n  name: {name}\nspec:\n  \
         cidr: {cidr}\n"
    )
}

/// The words of each line.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

async fn get_prints_the_columns(api: Api) {
    let kubectl = Kubectl::start(api, "get").await;
    let file = kubectl
        .scratch
        .write("a.yaml", &(manifest("a", "10.0.0.0/16") + "---\n" + &manifest("b", "10.1.0.0/16")));
    kubectl.run(&["apply", "-f", &file]).await;
    let short = kubectl.run(&["get", "pl"]).await;
    assert_eq!(words(&short)[0], ["NAME", "CIDR", "BLOCK", "READY", "AGE"]);
    assert_eq!(words(&short)[1][..3], ["a", "10.0.0.0/16", "26"]);
    let wide = kubectl.run(&["get", "pools", "-o", "wide"]).await;
    assert_eq!(words(&wide)[0], ["NAME", "CIDR", "BLOCK", "READY", "ENCAP", "AGE"]);
    let category = kubectl.run(&["get", "cairn", "-o", "name"]).await;
    assert_eq!(category, "pool.test.cairn.network/a\npool.test.cairn.network/b\n");
    kubectl.run(&["label", "pool", "b", "rack=r1"]).await;
    assert_eq!(
        kubectl.run(&["get", "pl", "-l", "rack in (r1)", "-o", "name"]).await,
        "pool.test.cairn.network/b\n"
    );
    let by_field = ["get", "pl", "--field-selector", "metadata.name!=b", "-o", "name"];
    assert_eq!(kubectl.run(&by_field).await, "pool.test.cairn.network/a\n");
    let path = ["get", "pl", "a", "-o", "jsonpath={.spec.blockSize}"];
    assert_eq!(kubectl.run(&path).await, "26");
    assert!(kubectl.run(&["get", "pl", "a", "-o", "yaml"]).await.contains("cidr: 10.0.0.0/16"));
    let missing = kubectl.fail(&["get", "pl", "zz"]).await;
    assert_eq!(
        missing,
        "Error from server (NotFound): pools.test.cairn.network \"zz\" not found\n"
    );
    assert!(kubectl.run(&["get", "crd"]).await.contains("pools.test.cairn.network"));
    assert!(kubectl.run(&["get", "namespaces"]).await.contains("Active"));
    assert!(kubectl.run(&["api-resources"]).await.contains("test.cairn.network/v1alpha1"));
    // Its complaint about the skew between the two versions is allowed.
    assert!(kubectl.output(&["version"]).await.status.success());
}

async fn apply_on_both_sides_edits_and_deletes(api: Api) {
    let kubectl = Kubectl::start(api, "apply").await;
    let file = kubectl.scratch.write("a.yaml", &manifest("a", "10.0.0.0/16"));
    let created = kubectl.run(&["apply", "-f", &file]).await;
    assert_eq!(created, "pool.test.cairn.network/a created\n");
    let same = kubectl.run(&["apply", "-f", &file]).await;
    assert_eq!(same, "pool.test.cairn.network/a unchanged\n");
    let more =
        kubectl.scratch.write("a.yaml", &(manifest("a", "10.0.0.0/16") + "  natOutgoing: true\n"));
    assert_eq!(
        kubectl.run(&["apply", "-f", &more]).await,
        "pool.test.cairn.network/a configured\n"
    );
    kubectl.scratch.write("a.yaml", &manifest("a", "10.0.0.0/16"));
    kubectl.run(&["apply", "-f", &file]).await;
    let value = kubectl.world.server.get("pools.test.cairn.network", None, "a").unwrap();
    assert_eq!(value["spec"].get("natOutgoing"), None, "apply takes back what it set");

    let other = kubectl.scratch.write("b.yaml", &manifest("b", "10.1.0.0/16"));
    let applied = kubectl.run(&["apply", "--server-side", "-f", &other]).await;
    assert_eq!(applied, "pool.test.cairn.network/b serverside-applied\n");
    kubectl.run(&["apply", "--server-side", "-f", &other]).await;

    let typo = kubectl.scratch.write("c.yaml", &(manifest("c", "10.2.0.0/16") + "  typo: 1\n"));
    let refusal = kubectl.fail(&["apply", "-f", &typo]).await;
    assert!(refusal.contains("strict decoding error: unknown field \"spec.typo\""), "{refusal}");
    let invalid = kubectl.scratch.write("d.yaml", &manifest("d", "10.2.0.1/16"));
    let refusal = kubectl.fail(&["apply", "-f", &invalid]).await;
    assert_eq!(
        refusal,
        "The Pool \"d\" is invalid: spec.cidr: Invalid value: \"10.2.0.1/16\": must be a canonical CIDR\n"
    );

    let output = kubectl
        .command(&["edit", "pool", "a"])
        .env("KUBE_EDITOR", "sed -i s/blockSize:.26/blockSize:\\ 28/")
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "pool.test.cairn.network/a edited\n", "{output:?}");
    let value = kubectl.world.server.get("pools.test.cairn.network", None, "a").unwrap();
    assert_eq!(value["spec"]["blockSize"], 28);

    let patch = r#"{"spec":{"natOutgoing":true}}"#;
    kubectl.run(&["patch", "pl", "a", "--type", "merge", "-p", patch]).await;
    kubectl.run(&["annotate", "pl", "a", "x=y"]).await;
    kubectl.run(&["diff", "-f", &other]).await;
    kubectl.run(&["replace", "-f", &other]).await;
    assert_eq!(
        kubectl.run(&["delete", "pl", "a"]).await,
        "pool.test.cairn.network \"a\" deleted\n"
    );
    kubectl.run(&["delete", "-f", &other]).await;
    assert_eq!(kubectl.world.server.list("pools.test.cairn.network", None, "").unwrap().len(), 0);
}

async fn builtin_kinds_are_applied_too(api: Api) {
    let kubectl = Kubectl::start(api, "builtin").await;
    let map = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  k: {value}\n")
    };
    let file = kubectl.scratch.write("m.yaml", &map("one"));
    assert_eq!(kubectl.run(&["apply", "-f", &file]).await, "configmap/m created\n");
    kubectl.scratch.write("m.yaml", &map("two"));
    assert_eq!(kubectl.run(&["apply", "-f", &file]).await, "configmap/m configured\n");
    assert_eq!(kubectl.run(&["get", "cm", "m", "-o", "jsonpath={.data.k}"]).await, "two");
    let team = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n---\napiVersion: v1\nkind: \
                Secret\nmetadata: {name: s, namespace: team}\nstringData: {a: b}\n";
    let file = kubectl.scratch.write("team.yaml", team);
    kubectl.run(&["apply", "-f", &file]).await;
    assert_eq!(
        words(&kubectl.run(&["get", "secrets", "-A"]).await)[1][..3],
        ["team", "s", "Opaque"]
    );
    kubectl.world.server.create("nodes", None, json!({"metadata": {"name": "n1"}})).unwrap();
    kubectl.run(&["label", "node", "n1", "cairn.network/asn=65101"]).await;
    kubectl.run(&["cordon", "n1"]).await;
    assert!(kubectl.run(&["get", "nodes"]).await.contains("Unknown,SchedulingDisabled"));
    assert!(kubectl.run(&["describe", "node", "n1"]).await.contains("cairn.network/asn=65101"));
    kubectl.run(&["delete", "node", "n1"]).await;
    // Without a controller manager the end of a real one never comes.
    kubectl.run(&["delete", "namespace", "team", "--wait=false"]).await;
}

async fn describe_and_explain_read_the_schema(api: Api) {
    let kubectl = Kubectl::start(api, "describe").await;
    let file = kubectl.scratch.write("a.yaml", &manifest("a", "10.0.0.0/16"));
    kubectl.run(&["apply", "-f", &file]).await;
    let uid = kubectl.world.server.get("pools.test.cairn.network", None, "a").unwrap()["metadata"]
        ["uid"]
        .clone();
    let event = json!({
        "metadata": {"name": "a.1"}, "type": "Warning", "reason": "Overlap", "message": "it overlaps",
        "involvedObject": {"kind": "Pool", "name": "a", "uid": uid},
        "source": {"component": "cairn"}, "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1,
    });
    kubectl.world.server.create("events", Some("default"), event).unwrap();
    let described = kubectl.run(&["describe", "pl", "a"]).await;
    assert!(described.contains("Block Size:     26"), "{described}");
    assert!(described.contains("it overlaps"), "{described}");
    let explained = kubectl.run(&["explain", "pools.spec"]).await;
    assert!(explained.contains("What the pool should be."), "{explained}");
    assert!(explained.contains("cidr\t<string> -required-"), "{explained}");
    assert!(explained.contains("enum: None, IPIP, VXLAN"), "{explained}");
    let whole = kubectl.run(&["explain", "pool", "--recursive"]).await;
    assert!(whole.contains("A range of pod addresses.") && whole.contains("blockSize"), "{whole}");
}

async fn get_watches(api: Api) {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let kubectl = Kubectl::start(api, "watch").await;
    let object = |name: &str| {
        json!({
            "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
            "metadata": {"name": name}, "spec": {"cidr": "10.0.0.0/16"},
        })
    };
    let server = &kubectl.world.server;
    server.create("pools.test.cairn.network", None, object("a")).unwrap();
    let mut command = kubectl.command(&["get", "pl", "-w"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        line.expect("a line in time").unwrap().expect("kubectl goes on")
    };
    assert!(next().await.starts_with("NAME"));
    assert!(next().await.starts_with("a "));
    server.create("pools.test.cairn.network", None, object("b")).unwrap();
    assert!(next().await.starts_with("b "));
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    server.patch_status("pools.test.cairn.network", None, "b", &ready).unwrap();
    let line = next().await;
    assert_eq!(line.split_whitespace().nth(3), Some("True"), "{line}");
    server.delete("pools.test.cairn.network", None, "a").unwrap();
    assert!(next().await.starts_with("a "));
    child.kill().await.unwrap();
}

on_both_apis! {
    get_prints_the_columns,
    apply_on_both_sides_edits_and_deletes,
    builtin_kinds_are_applied_too,
    describe_and_explain_read_the_schema,
    get_watches,
}
