//! What `manifests/` says, checked as far as it goes without a cluster: every file is read as the
//! kind that it claims to be, Cairn's own objects are judged by the schema and its rules, and what
//! the manifests and the code must agree on is compared.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube_cel::Validator;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn documents(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every YAML file under manifests/ by its path from the repository's root.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join("manifests")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("manifests/ can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                let path = path.strip_prefix(root()).expect("below the root").to_owned();
                found.push(path.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn only(path: &str, kind: &str, name: &str) -> Value {
    let mut found: Vec<Value> = documents(path)
        .into_iter()
        .filter(|d| d["kind"] == kind && d["metadata"]["name"] == name)
        .collect();
    assert_eq!(found.len(), 1, "{path}: {kind} {name}");
    found.remove(0)
}

/// Reads `object` as a `T` and compares what `T` understood with what was written: a misspelt field
/// would be lost on the way.
fn whole<T: DeserializeOwned + Serialize>(object: &Value) -> Result<T, String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
    let back = serde_json::to_value(&typed).map_err(|e| e.to_string())?;
    lost("", object, &back).map_or(Ok(typed), |path| Err(format!("{path} is not known")))
}

fn lost(path: &str, written: &Value, understood: &Value) -> Option<String> {
    match (written, understood) {
        (Value::Object(a), Value::Object(b)) => a.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match b.get(key) {
                Some(other) => lost(&path, value, other),
                None => Some(path),
            }
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(at, (value, other))| lost(&format!("{path}[{at}]"), value, other)),
        _ => (written != understood).then(|| path.to_owned()),
    }
}

/// What is wrong with an object of one of Cairn's kinds, by its definition: structure, bounds and
/// rules, after filling the defaults.
fn faults(object: &Value) -> Vec<String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let Some(crd) = cairn_api::crds().into_iter().find(|crd| crd.spec.names.kind == kind) else {
        return vec![format!("no kind {kind}")];
    };
    let version = &crd.spec.versions[0];
    let api_version = format!("{}/{}", crd.spec.group, version.name);
    if object["apiVersion"] != json!(api_version) {
        return vec![format!("apiVersion must be {api_version}")];
    }
    let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
    let schema = serde_json::to_value(schema).expect("a schema is JSON");
    let mut object = object.clone();
    fill(&schema, &mut object);
    let mut faults = Vec::new();
    for key in ["spec", "status"] {
        if let Some(part) = object.get(key) {
            judge(&format!(".{key}"), &schema["properties"][key], part, &mut faults);
        }
    }
    if let Err(errors) = Validator::new().validate(&schema, &object, None) {
        faults.extend(
            errors.into_vec().into_iter().map(|e| format!("{}: {}", e.field_path, e.message)),
        );
    }
    faults
}

fn fill(schema: &Value, object: &mut Value) {
    match object {
        Value::Object(fields) => {
            for (key, property) in schema["properties"].as_object().into_iter().flatten() {
                if let (None, Some(default)) = (fields.get(key), property.get("default")) {
                    fields.insert(key.clone(), default.clone());
                }
                if let Some(field) = fields.get_mut(key) {
                    fill(property, field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(&schema["items"], item)),
        _ => {}
    }
}

fn judge(path: &str, schema: &Value, value: &Value, faults: &mut Vec<String>) {
    let mut fault = |text: String| faults.push(format!("{path}: {text}"));
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        return fault(format!("must be of type {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        fault(format!("{value} is none of {}", schema["enum"]));
    }
    let size = match value {
        Value::String(text) => Some(("Length", text.chars().count() as f64)),
        Value::Array(items) => Some(("Items", items.len() as f64)),
        Value::Number(number) => Some(("imum", number.as_f64().expect("a finite number"))),
        _ => None,
    };
    if let Some((suffix, size)) = size {
        let bound = |end: &str| schema[format!("{end}{suffix}")].as_f64();
        if bound("min").is_some_and(|min| size < min) || bound("max").is_some_and(|max| size > max)
        {
            fault(format!("{value} is out of bounds"));
        }
    }
    match value {
        Value::Object(fields) => {
            for required in schema["required"].as_array().into_iter().flatten() {
                if required.as_str().is_some_and(|key| !fields.contains_key(key)) {
                    fault(format!("{required} is missing"));
                }
            }
            for (key, field) in fields {
                let below = format!("{path}.{key}");
                match (&schema["properties"][key], &schema["additionalProperties"]) {
                    (Value::Null, Value::Null) => faults.push(format!("{below}: is not known")),
                    (Value::Null, any) => judge(&below, any, field, faults),
                    (known, _) => judge(&below, known, field, faults),
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                judge(&format!("{path}[{at}]"), &schema["items"], item, faults);
            }
        }
        _ => {}
    }
}

#[test]
fn the_definitions_are_those_of_the_types() {
    let written = documents("manifests/crds/crds.yaml");
    let generated: Vec<Value> = cairn_api::crds()
        .iter()
        .map(|crd| serde_json::to_value(crd).expect("a definition is JSON"))
        .collect();
    assert_eq!(written, generated, "run `make crds`");
}

#[test]
fn every_object_is_what_its_kind_allows() {
    let mut kinds = BTreeSet::new();
    for path in files() {
        for object in documents(&path) {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let result = match kind.as_str() {
                // Read by kubectl (scripts/render-manifests.sh) and by the test above.
                "Kustomization" | "CustomResourceDefinition" => Ok(()),
                "Namespace" => whole::<Namespace>(&object).map(drop),
                "ServiceAccount" => whole::<ServiceAccount>(&object).map(drop),
                "ClusterRole" => whole::<ClusterRole>(&object).map(drop),
                "ClusterRoleBinding" => whole::<ClusterRoleBinding>(&object).map(drop),
                "Role" => whole::<Role>(&object).map(drop),
                "RoleBinding" => whole::<RoleBinding>(&object).map(drop),
                "ConfigMap" => whole::<ConfigMap>(&object).map(drop),
                "DaemonSet" => whole::<DaemonSet>(&object).map(drop),
                _ => match faults(&object) {
                    faults if faults.is_empty() => Ok(()),
                    faults => Err(faults.join("; ")),
                },
            };
            if let Err(fault) = result {
                panic!("{path}: {kind} {}: {fault}", object["metadata"]["name"]);
            }
            kinds.insert(kind);
        }
    }
    for kind in ["DaemonSet", "IPPool", "IPReservation", "BGPConfiguration", "BGPPeer", "BGPPolicy"]
    {
        assert!(kinds.contains(kind), "no {kind} was found: the search is broken");
    }
}

#[test]
fn whole_objects_in_the_guide_on_addresses_are_what_their_kinds_allow() {
    let guide = text("docs/guide/ipam.md");
    let blocks = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let objects: Vec<Value> = blocks
        .filter(|block| block.starts_with("apiVersion"))
        .map(|block| serde_saphyr::from_str(block).expect("YAML"))
        .collect();
    assert!(objects.len() >= 2, "the guide has examples");
    for object in objects {
        assert_eq!(faults(&object), Vec::<String>::new(), "{object}");
    }
}

/// The judge itself: each edit of a good object must be found.
#[test]
fn faults_are_found() {
    let good = only("manifests/examples/policy.yaml", "BGPPeer", "edge");
    assert_eq!(faults(&good), Vec::<String>::new());
    for (pointer, value, fault) in [
        ("/kind", json!("BGPPear"), "no kind"),
        ("/apiVersion", json!("cairn.network/v2"), "apiVersion must be"),
        ("/spec/asn", json!("65300"), "must be of type"),
        ("/spec/asn", json!(0), "out of bounds"),
        ("/spec/asn", json!(23456), "AS_TRANS"),
        ("/spec/multihop", json!(256), "out of bounds"),
        ("/spec/address", json!("edge"), "is an IP address"),
        ("/spec/importPolicies", json!([""]), "out of bounds"),
        ("/spec", json!({"address": "192.0.2.1"}), "\"asn\" is missing"),
        ("/spec", json!({"address": "192.0.2.1", "asn": 1, "as": 1}), ".spec.as: is not known"),
        ("/spec", json!({"address": "192.0.2.1", "asn": 1, "nextHop": "Me"}), "is none of"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect("the field is there") = value.clone();
        let found = faults(&bad);
        assert!(found.iter().any(|f| f.contains(fault)), "{pointer} = {value}: {found:?}");
    }
    let mut daemon_set = only("manifests/base/daemonset.yaml", "DaemonSet", "cairn-agent");
    daemon_set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurges"] = json!(0);
    let error = whole::<DaemonSet>(&daemon_set).expect_err("a misspelt field");
    assert_eq!(error, ".spec.updateStrategy.rollingUpdate.maxSurges is not known");
}

/// The rules of a role as (group, resource, verbs) rows.
fn rules(role: &Value) -> BTreeSet<(String, String, String)> {
    let list = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let mut rows = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        let mut verbs = list(&rule["verbs"]);
        verbs.sort();
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                assert!(rule["resourceNames"].is_null(), "the table has no column for names");
                rows.insert((group.clone(), resource, verbs.join(" ")));
            }
        }
    }
    rows
}

/// The guide's table below a line that holds `heading`, as (group, resource, verbs) rows.
fn table(heading: &str) -> BTreeSet<(String, String, String)> {
    text("docs/guide/install.md")
        .lines()
        .skip_while(|line| !line.contains(heading))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> =
                line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            let [_, group, resource, verbs, ..] = cells[..] else {
                panic!("{line}: too few cells")
            };
            let group = if group == "core" { "" } else { group };
            (group.to_owned(), resource.to_owned(), verbs.to_owned())
        })
        .collect()
}

#[test]
fn agents_may_do_what_the_guide_says_and_no_more() {
    for (kind, heading) in
        [("ClusterRole", "In the whole cluster"), ("Role", "In the namespace cairn-system")]
    {
        let documented = table(heading);
        assert!(!documented.is_empty(), "no table below \"{heading}\"");
        let granted = rules(&only("manifests/base/rbac.yaml", kind, "cairn-agent"));
        assert_eq!(granted, documented, "{kind}: manifests/base/rbac.yaml and the guide differ");
        for (group, resource, verbs) in &granted {
            let words = [group.as_str(), resource.as_str(), verbs.as_str()];
            assert!(!words.iter().any(|w| w.contains('*')), "{words:?}");
            let reads_secrets = resource == "secrets";
            assert!(!reads_secrets || kind == "Role", "no agent reads other namespaces' Secrets");
            assert!(!reads_secrets || verbs == "list watch", "no agent writes Secrets");
        }
    }
}

#[test]
fn the_daemon_set_keeps_one_agent_a_node_with_few_rights() {
    let path = "manifests/base/daemonset.yaml";
    let set: DaemonSet = whole(&only(path, "DaemonSet", "cairn-agent")).expect("a DaemonSet");
    let set = serde_json::to_value(set).expect("JSON");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"], 0);
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        set["spec"]["template"]["metadata"]["labels"]
    );
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["serviceAccountName"], "cairn-agent");
    let added = json!(["NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE", "SYS_ADMIN"]);
    assert_eq!(pod["containers"][0]["securityContext"]["capabilities"]["add"], added);
    let volumes: BTreeSet<&str> = pod["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .collect();
    let mut mounted = BTreeSet::new();
    for container in ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| pod[list].as_array().into_iter().flatten())
    {
        let security = &container["securityContext"];
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{}", container["name"]);
        assert!(security["privileged"].is_null(), "{}", container["name"]);
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            mounted.insert(mount["name"].as_str().expect("a name"));
        }
    }
    assert_eq!(mounted, volumes, "every volume is mounted and every mount has one");
}

/// BFD outlives the agent: a DaemonSet of its own, which no new image restarts, and without a limit that would stop
/// its packets.
#[test]
fn bfd_runs_beside_the_agent_and_undisturbed() {
    let set: DaemonSet =
        whole(&only("manifests/base/bfd.yaml", "DaemonSet", "cairn-bfd")).expect("a DaemonSet");
    let set = serde_json::to_value(set).expect("JSON");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete");
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        set["spec"]["template"]["metadata"]["labels"]
    );
    assert_eq!(
        (&pod["hostNetwork"], &pod["automountServiceAccountToken"]),
        (&json!(true), &json!(false))
    );
    let container = &pod["containers"][0];
    let capabilities = &container["securityContext"]["capabilities"];
    assert_eq!(*capabilities, json!({"drop": ["ALL"], "add": ["NET_RAW", "SYS_NICE"]}));
    assert_eq!(
        (&container["resources"]["limits"], &container["livenessProbe"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(host_path(pod, container, "/run/cairn"), "/run/cairn");
}

/// The network configuration list that the manifests bring.
fn conflist() -> Value {
    let map = only("manifests/base/cni.yaml", "ConfigMap", "cairn-cni");
    let list = map["data"]["10-cairn.conflist"].as_str().expect("the network configuration");
    serde_json::from_str(list).expect("JSON")
}

/// The DaemonSet's pod.
fn agent_pod() -> Value {
    let set = only("manifests/base/daemonset.yaml", "DaemonSet", "cairn-agent");
    set["spec"]["template"]["spec"].clone()
}

/// The shell script that a container of it runs.
fn script_of(container: &Value) -> &str {
    let command = container["command"].as_array().expect("a command");
    assert_eq!(command[..2], [json!("/bin/sh"), json!("-ec")]);
    command[2].as_str().expect("a script")
}

/// The path on the host of what is mounted at `path`.
fn host_path(pod: &Value, container: &Value, path: &str) -> String {
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let mount = mounts.iter().find(|m| m["mountPath"] == path).expect("a mount of this path");
    let volumes = pod["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|v| v["name"] == mount["name"]).expect("a volume");
    volume["hostPath"]["path"].as_str().expect("a path on the host").to_owned()
}

#[test]
fn the_plugin_finds_the_agent() {
    let list = conflist();
    // The oldest runtimes read this one, newer ones take the highest of the others: with 1.1.0 they ask
    // STATUS and GC.
    assert_eq!(list["cniVersion"], "1.0.0");
    assert_eq!(list["cniVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    for plugin in list["plugins"].as_array().expect("plugins") {
        assert_ne!(plugin["capabilities"], Value::Null, "{plugin}");
    }
    let plugin = &list["plugins"][0];
    assert_eq!(plugin["type"], "cairn-cni");
    for version in list["cniVersions"].as_array().expect("versions") {
        // As a runtime hands it over: name and version of the list in each plugin's configuration.
        let mut config = plugin.clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = version.clone();
        let config = cairn_cni::NetworkConfig::parse(config.to_string().as_bytes())
            .expect("the plugin takes its configuration");
        assert_eq!(config.socket, Path::new(cairn_cni::SOCKET_PATH));
    }
    // Without it every pod start would ask the API server for the pod's annotations.
    assert_eq!(plugin["capabilities"][cairn_cni::config::POD_ANNOTATIONS], true);
    // Host ports, also towards a pod from its own node's 127.0.0.1.
    assert_eq!(
        list["plugins"][1],
        json!({"type": "cairn-portmap", "snat": true, "capabilities": {"portMappings": true}})
    );

    let pod = agent_pod();
    let agent = &pod["containers"][0];
    let run = Path::new(cairn_cni::SOCKET_PATH).parent().and_then(Path::to_str).expect("a path");
    assert_eq!(host_path(&pod, agent, run), run);
}

#[test]
fn the_agent_writes_the_network_configuration_and_the_init_step_every_plugin_of_it() {
    let pod = agent_pod();
    let agent = &pod["containers"][0];
    let script = script_of(agent);
    let option = |name: &str| {
        let (_, rest) = script.split_once(name).unwrap_or_else(|| panic!("{name}: {script}"));
        rest.split_whitespace().next().expect("a value").to_owned()
    };
    let source = option("--cni-conflist ");
    let directory = option("--cni-conf-dir ");
    assert_eq!(host_path(&pod, agent, &directory), "/etc/cni/net.d");
    let (mounted, name) = source.rsplit_once('/').expect("a path");
    let mounts = agent["volumeMounts"].as_array().expect("mounts");
    let mount = mounts.iter().find(|m| m["mountPath"] == mounted).expect("the list is mounted");
    assert_eq!(mount["readOnly"], true);
    let volumes = pod["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|v| v["name"] == mount["name"]).expect("a volume");
    assert_eq!(volume["configMap"]["name"], "cairn-cni");
    let map = only("manifests/base/cni.yaml", "ConfigMap", "cairn-cni");
    assert!(map["data"][name].is_string(), "the ConfigMap has no {name}");
    // What `cairn cleanup` removes by default.
    assert_eq!(name, "10-cairn.conflist");

    let place = Place::new("plugins");
    place.image("cairn-cni", "/bin/true");
    place.image("portmap", "/bin/true");
    place.install(&pod);
    for plugin in conflist()["plugins"].as_array().expect("plugins") {
        let name = plugin["type"].as_str().expect("a type");
        let installed = place.host(name).metadata().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(installed.permissions().mode() & 0o7777, 0o755);
    }
    let image = text("Dockerfile");
    for name in ["cairn-cni", "portmap"] {
        assert!(image.contains(&format!("/{name}")), "the image brings no {name}");
    }
    let init = &pod["initContainers"][0];
    assert_eq!(host_path(&pod, init, "/host/bin"), "/opt/cni/bin");
}

#[test]
fn pods_start_while_an_upgrade_replaces_the_plugin() {
    let pod = agent_pod();
    let place = Place::new("upgrade");
    place.image("portmap", "/bin/true");
    let versions = ["/bin/true", "/bin/sleep"];
    place.image("cairn-cni", versions[0]);
    place.install(&pod);
    // The old one is running for all the time.
    std::fs::copy("/bin/sleep", place.host("cairn-cni")).expect("copied");
    let mut old = Command::new(place.host("cairn-cni")).arg("60").spawn().expect("it runs");
    let path = place.host("cairn-cni");
    let running = std::thread::spawn(move || {
        for run in 0..1_000 {
            let status = Command::new(&path).arg("0").status();
            let status = status.unwrap_or_else(|e| panic!("run {run}: {e}"));
            assert!(status.success(), "run {run}: {status}");
        }
    });
    let mut upgrades = 0;
    while !running.is_finished() {
        place.image("cairn-cni", versions[upgrades % 2]);
        place.install(&pod);
        upgrades += 1;
    }
    let still = old.try_wait().expect("a child");
    old.kill().and_then(|()| old.wait()).expect("it ends");
    running.join().expect("every run succeeded");
    assert_eq!(still, None, "what runs keeps its own file");
    assert!(upgrades >= 10, "{upgrades} upgrades");
    let left = std::fs::read_dir(place.0.join("host")).expect("a directory").count();
    assert_eq!(left, 2, "nothing but the plugins");
}

/// The image's and the host's directory of plugins, removed with the value.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let place = std::env::temp_dir().join(format!("install-{name}-{}", std::process::id()));
        for directory in ["image", "host"] {
            std::fs::create_dir_all(place.join(directory)).expect("a directory");
        }
        Place(place)
    }

    fn host(&self, plugin: &str) -> PathBuf {
        self.0.join("host").join(plugin)
    }

    /// Puts a program into the image.
    fn image(&self, plugin: &str, program: &str) {
        std::fs::copy(program, self.0.join("image").join(plugin)).expect("copied");
    }

    /// Runs the init container's script, whose mounts these directories are.
    fn install(&self, pod: &Value) {
        let script = script_of(&pod["initContainers"][0])
            .replace("/usr/local/bin/", &format!("{}/", self.0.join("image").display()))
            .replace("/host/bin", &self.0.join("host").display().to_string());
        let status = Command::new("/bin/sh").arg("-ec").arg(&script).status().expect("a shell");
        assert!(status.success(), "{status}: {script}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_router_takes_the_example_file() {
    let path = root().join("manifests/examples/router.yaml");
    let speaker = cairn_agent::file::load(&path).expect("the speaker takes the file");
    assert_eq!((speaker.asn, speaker.peers.len(), speaker.originate.len()), (65201, 3, 1));
    for (name, peer) in &speaker.peers {
        assert!(!peer.import.is_empty() && !peer.export.is_empty(), "{name} exchanges nothing");
    }
}

#[test]
fn the_speaker_takes_what_the_guide_shows() {
    let guide = text("docs/guide/speaker.md");
    let example = guide
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("an example in the guide");
    let speaker = cairn_agent::file::parse("router.yaml", example).expect("a good file");
    assert_eq!(speaker.peers.len(), 1);
    let broken = example.replace("importPolicies: [pods]", "importPolicies: [pod]");
    let error = cairn_agent::file::parse("router.yaml", &broken).expect_err("no such policy");
    let shown = "router.yaml:9:1: BGPPeer node-1: spec.importPolicies: there is no usable \
                 BGPPolicy \"pod\": create it or mend its name";
    assert_eq!(error.to_string(), shown);
    assert!(guide.contains(shown), "the guide shows another message");
    let examples = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let examples: Vec<&str> = examples.collect();
    assert_eq!(examples.len(), 4, "the guide's examples");
    for example in &examples {
        cairn_agent::file::parse("example.yaml", example)
            .unwrap_or_else(|e| panic!("{e}\n{example}"));
    }
    let speaker = cairn_agent::file::parse("hub.yaml", examples[1]).expect("a good file");
    assert_eq!((speaker.asn, speaker.peers.len(), speaker.listen[0].port()), (65000, 2, 1790));
    let speaker = cairn_agent::file::parse("router.yaml", examples[3]).expect("a good file");
    assert!(speaker.peers["p1"].password.is_some());
}
