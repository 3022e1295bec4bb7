//! Which resources are served: the builtin ones and those that CRDs add.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::error::{ApiError, FieldError, FieldErrorKind};
use super::jsonpath::JsonPath;
use super::rules::Rules;
use super::schema::{Schema, any, strings};
use super::table::{Column, human_duration};

/// Version of the data that discovery answers with.
const CRD_GROUP: &str = "apiextensions.k8s.io";

/// How names of a resource's objects are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameRule {
    /// An RFC 1123 subdomain.
    Subdomain,
    /// An RFC 1123 label.
    Label,
    /// Whatever fits into a path segment.
    PathSegment,
}

/// What differs between resources when they are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteRules {
    pub(super) name: NameRule,
    /// PUT of an object that does not exist creates it.
    pub(super) create_on_update: bool,
    /// PUT without a resourceVersion overwrites whatever is there.
    pub(super) unconditional_update: bool,
    /// `metadata.generation` counts changes of the spec.
    pub(super) generation: bool,
    /// The status in a create request is kept though there is a status subresource.
    pub(super) status_on_create: bool,
}

/// One served resource in one version.
#[derive(Debug)]
pub struct Resource {
    /// The API group; empty for core.
    pub group: String,
    /// The version, such as `v1`.
    pub version: String,
    /// The kind, such as `Node`.
    pub kind: String,
    /// The kind of a list of it.
    pub list_kind: String,
    /// The name in paths, such as `nodes`.
    pub plural: String,
    /// The name of one, such as `node`.
    pub singular: String,
    /// Abbreviations for people.
    pub short_names: Vec<String>,
    /// Groups of resources for people, such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether there is a status subresource.
    pub status: bool,
    pub(super) custom: bool,
    pub(super) rules: WriteRules,
    pub(super) columns: Vec<Column>,
    pub(super) selectable: Vec<(String, JsonPath)>,
    pub(super) schema: Option<Schema>,
    pub(super) openapi: Value,
    pub(super) cel: Option<Rules>,
    /// The group and plural that all versions of the resource share.
    pub(super) storage: String,
}

impl Resource {
    /// `group/version`, or the version alone for core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `plural.group`, or the plural alone for core, as error messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether this is the resource of CRDs itself.
    pub(super) fn is_crd(&self) -> bool {
        self.group == CRD_GROUP && self.plural == "customresourcedefinitions"
    }

    /// Whether objects are events in the newer group, which are stored in the older one's form.
    pub(super) fn is_new_event(&self) -> bool {
        self.group == "events.k8s.io"
    }

    /// The verbs that discovery names.
    pub(super) fn verbs(&self) -> &'static [&'static str] {
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    }
}

/// All served resources.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalog {
    by_path: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Catalog {
    /// The catalog of a server without any CRD.
    pub(super) fn builtin() -> Catalog {
        let mut catalog = Catalog::default();
        for row in BUILTIN {
            catalog.insert(Arc::new(row.resource()));
        }
        catalog
    }

    fn insert(&mut self, resource: Arc<Resource>) {
        let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.by_path.insert(key, resource);
    }

    /// The resource at a path.
    pub(super) fn at(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The resource named `plural` or `plural.group`; the first version of several.
    pub(super) fn named(&self, name: &str) -> Option<Arc<Resource>> {
        let mut matching = self.by_path.values().filter(|r| r.qualified() == name);
        matching.next().cloned()
    }

    /// The resource of a kind.
    pub(super) fn of_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.by_path.values().find(|r| r.kind == kind && r.api_version() == api_version).cloned()
    }

    /// All resources, by group, version and plural.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_path.values()
    }

    /// Whether a group is served.
    pub(super) fn has_group(&self, group: &str) -> bool {
        self.by_path.keys().any(|(g, _, _)| g == group)
    }

    /// Replaces what one CRD serves.
    pub(super) fn replace_custom(&mut self, storage: &str, resources: Vec<Resource>) {
        self.by_path.retain(|_, resource| !(resource.custom && resource.storage == storage));
        for resource in resources {
            self.insert(Arc::new(resource));
        }
    }
}

/// Checks a CRD, fills its names' and status' defaults, and returns the resources it serves.
///
/// # Errors
/// 422 when the definition is not a usable one; 501 for conversion webhooks.
pub(super) fn read_crd(
    crd: &mut Value,
    own: &Resource,
    now: &str,
) -> Result<Vec<Resource>, ApiError> {
    let name = text(crd, "/metadata/name");
    let refuse = |error: FieldError| ApiError::invalid(own, &name, &[error]);
    let required = |value: String, path: &str| {
        if value.is_empty() { Err(refuse(FieldError::required(path, ""))) } else { Ok(value) }
    };
    let group = required(text(crd, "/spec/group"), "spec.group")?;
    let plural = required(text(crd, "/spec/names/plural"), "spec.names.plural")?;
    let kind = required(text(crd, "/spec/names/kind"), "spec.names.kind")?;
    let scope = required(text(crd, "/spec/scope"), "spec.scope")?;
    if name != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        return Err(refuse(FieldError::invalid("metadata.name", &json!(name), detail)));
    }
    if !matches!(scope.as_str(), "Cluster" | "Namespaced") {
        let detail = "supported values: \"Cluster\", \"Namespaced\"";
        let kind = FieldErrorKind::NotSupported;
        return Err(refuse(FieldError::new(kind, "spec.scope", &json!(scope), detail)));
    }
    match text(crd, "/spec/conversion/strategy").as_str() {
        "" | "None" => {}
        other => {
            return Err(ApiError::not_implemented(format_args!("the conversion strategy {other}")));
        }
    }
    let names = crd.pointer_mut("/spec/names").and_then(Value::as_object_mut);
    if let Some(names) = names {
        names.entry("singular").or_insert_with(|| json!(kind.to_lowercase()));
        names.entry("listKind").or_insert_with(|| json!(format!("{kind}List")));
    }
    if let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) {
        spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    }
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array).cloned();
    let versions = versions.filter(|versions| !versions.is_empty());
    let Some(versions) = versions else {
        return Err(refuse(FieldError::required("spec.versions", "")));
    };
    let is_set = |version: &Value, key: &str| version.get(key) == Some(&Value::Bool(true));
    if versions.iter().filter(|v| is_set(v, "storage")).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        return Err(refuse(FieldError::invalid("spec.versions", &Value::Null, detail)));
    }
    let mut resources = Vec::new();
    for (i, version) in versions.iter().enumerate() {
        let resource = read_version(crd, version, &group, &plural, &kind, i).map_err(refuse)?;
        if is_set(version, "served") {
            resources.push(resource);
        }
    }
    let stored: Vec<Value> = versions
        .iter()
        .filter(|version| is_set(version, "storage"))
        .filter_map(|version| version.get("name").cloned())
        .collect();
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "lastTransitionTime": now,
            "reason": reason, "message": message,
        })
    };
    let accepted = crd.pointer("/spec/names").cloned().unwrap_or(Value::Null);
    // The conditions keep their first transition times: a no-op write must stay one.
    if crd.pointer("/status/conditions").is_none() {
        crd["status"] = json!({"conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]});
    }
    crd["status"]["acceptedNames"] = accepted;
    crd["status"]["storedVersions"] = Value::Array(stored);
    Ok(resources)
}

fn read_version(
    crd: &Value,
    version: &Value,
    group: &str,
    plural: &str,
    kind: &str,
    index: usize,
) -> Result<Resource, FieldError> {
    let path = format!("spec.versions[{index}]");
    let name = text(version, "/name");
    if name.is_empty() {
        return Err(FieldError::required(format!("{path}.name"), ""));
    }
    let schema_path = format!("{path}.schema.openAPIV3Schema");
    let Some(openapi) = version.pointer("/schema/openAPIV3Schema") else {
        return Err(FieldError::required(schema_path, "schemas are required"));
    };
    let mut columns = Vec::new();
    let listed = version.get("additionalPrinterColumns").and_then(Value::as_array);
    for (c, column) in listed.map_or(&[][..], Vec::as_slice).iter().enumerate() {
        let json_path = text(column, "/jsonPath");
        let parsed = Column::path(&text(column, "/name"), &text(column, "/type"), &json_path);
        let Some(mut parsed) = parsed else {
            let at = format!("{path}.additionalPrinterColumns[{c}].jsonPath");
            let detail = "is not a JSONPath that the embedded API server reads";
            return Err(FieldError::invalid(at, &json!(json_path), detail));
        };
        parsed.format = text(column, "/format");
        parsed.description = text(column, "/description");
        parsed.priority = column.get("priority").and_then(Value::as_i64).unwrap_or(0);
        columns.push(parsed);
    }
    if columns.is_empty() {
        columns.extend(Column::path("Age", "date", ".metadata.creationTimestamp"));
    }
    let mut selectable = Vec::new();
    let listed = version.get("selectableFields").and_then(Value::as_array);
    for (f, field) in listed.map_or(&[][..], Vec::as_slice).iter().enumerate() {
        let json_path = text(field, "/jsonPath");
        let at = format!("{path}.selectableFields[{f}].jsonPath");
        let parsed = JsonPath::parse(&json_path)
            .ok_or_else(|| FieldError::invalid(at, &json!(json_path), "is an invalid path"))?;
        selectable.push((json_path.trim_start_matches('.').to_owned(), parsed));
    }
    let names = crd.pointer("/spec/names").unwrap_or(&Value::Null);
    Ok(Resource {
        group: group.to_owned(),
        version: name.clone(),
        kind: kind.to_owned(),
        list_kind: text(names, "/listKind"),
        plural: plural.to_owned(),
        singular: text(names, "/singular"),
        short_names: strings(names.get("shortNames")),
        categories: strings(names.get("categories")),
        namespaced: text(crd, "/spec/scope") == "Namespaced",
        status: version.pointer("/subresources/status").is_some(),
        custom: true,
        rules: WriteRules {
            name: NameRule::Subdomain,
            create_on_update: false,
            unconditional_update: false,
            generation: true,
            status_on_create: false,
        },
        columns,
        selectable,
        schema: Some(Schema::parse(openapi, &schema_path)?),
        openapi: openapi.clone(),
        cel: Some(Rules::compile(openapi, group, &name, kind)?),
        storage: format!("{plural}.{group}"),
    })
}

/// The string at a JSON pointer; empty when there is none.
pub(super) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// One row of the builtin table.
struct Builtin {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    status: bool,
    write: WriteRules,
    selectable: &'static [&'static str],
}

/// Objects whose plain PUT overwrites, the commonest case.
const LOOSE: WriteRules = WriteRules {
    name: NameRule::Subdomain,
    create_on_update: false,
    unconditional_update: true,
    generation: false,
    status_on_create: false,
};
const NODE: WriteRules = WriteRules { status_on_create: true, ..LOOSE };
const LEASE: WriteRules =
    WriteRules { create_on_update: true, unconditional_update: false, ..LOOSE };
const LABEL_NAMED: WriteRules = WriteRules { name: NameRule::Label, ..LOOSE };
const CREATABLE: WriteRules = WriteRules { create_on_update: true, ..LOOSE };
const COUNTED: WriteRules = WriteRules { generation: true, ..LOOSE };
const RBAC: WriteRules =
    WriteRules { name: NameRule::PathSegment, create_on_update: true, ..LOOSE };
const DEFINITION: WriteRules =
    WriteRules { generation: true, unconditional_update: false, ..LOOSE };

const fn builtin(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    write: WriteRules,
) -> Builtin {
    Builtin {
        group,
        version,
        kind,
        plural,
        short,
        namespaced: true,
        status: false,
        write,
        selectable: &[],
    }
}

impl Builtin {
    const fn cluster(mut self) -> Builtin {
        self.namespaced = false;
        self
    }

    const fn with_status(mut self) -> Builtin {
        self.status = true;
        self
    }

    const fn selectable(mut self, fields: &'static [&'static str]) -> Builtin {
        self.selectable = fields;
        self
    }

    fn resource(&self) -> Resource {
        // Both event groups show the same objects.
        let storage_group = if self.plural == "events" { "" } else { self.group };
        let storage = if storage_group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{storage_group}", self.plural)
        };
        Resource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            plural: self.plural.to_owned(),
            singular: self.kind.to_lowercase(),
            short_names: self.short.iter().map(|s| (*s).to_owned()).collect(),
            categories: Vec::new(),
            namespaced: self.namespaced,
            status: self.status,
            custom: false,
            rules: self.write,
            columns: builtin_columns(self.plural),
            selectable: self
                .selectable
                .iter()
                .filter_map(|field| Some(((*field).to_owned(), JsonPath::parse(field)?)))
                .collect(),
            schema: None,
            openapi: {
                let mut openapi = any();
                openapi["type"] = json!("object");
                openapi
            },
            cel: None,
            storage,
        }
    }
}

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const BUILTIN: &[Builtin] = &[
    builtin("", "v1", "Node", "nodes", &["no"], NODE)
        .cluster()
        .with_status()
        .selectable(&["spec.unschedulable"]),
    builtin("", "v1", "Namespace", "namespaces", &["ns"], LABEL_NAMED)
        .cluster()
        .with_status()
        .selectable(&["status.phase"]),
    builtin("", "v1", "Pod", "pods", &["po"], COUNTED).with_status().selectable(&[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ]),
    builtin("", "v1", "Secret", "secrets", &[], LOOSE).selectable(&["type"]),
    builtin("", "v1", "ConfigMap", "configmaps", &["cm"], LOOSE),
    builtin("", "v1", "Event", "events", &["ev"], CREATABLE).selectable(EVENT_FIELDS),
    builtin("", "v1", "Service", "services", &["svc"], LABEL_NAMED)
        .with_status()
        .selectable(&["spec.clusterIP", "spec.type"]),
    builtin("", "v1", "ServiceAccount", "serviceaccounts", &["sa"], LOOSE),
    builtin("events.k8s.io", "v1", "Event", "events", &["ev"], CREATABLE).selectable(EVENT_FIELDS),
    builtin("coordination.k8s.io", "v1", "Lease", "leases", &[], LEASE),
    builtin("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", &[], COUNTED),
    builtin("apps", "v1", "DaemonSet", "daemonsets", &["ds"], COUNTED).with_status(),
    builtin("apps", "v1", "Deployment", "deployments", &["deploy"], COUNTED).with_status(),
    builtin("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", &[], RBAC).cluster(),
    builtin(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        &[],
        RBAC,
    )
    .cluster(),
    builtin("rbac.authorization.k8s.io", "v1", "Role", "roles", &[], RBAC),
    builtin("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", &[], RBAC),
    builtin("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", &[], COUNTED)
        .cluster()
        .with_status(),
    builtin(
        CRD_GROUP,
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        &["crd", "crds"],
        DEFINITION,
    )
    .cluster()
    .with_status(),
];

/// Groups of the real server that are not served here, so that a request for one is answered with
/// 501 and not with a 404 that would say "there is none".
pub(super) const KNOWN_GROUPS: &[&str] = &[
    "admissionregistration.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "node.k8s.io",
    "policy",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

fn builtin_columns(plural: &str) -> Vec<Column> {
    let path = |name: &str, kind: &str, path: &str| Column::path(name, kind, path);
    let age = path("Age", "date", ".metadata.creationTimestamp");
    let columns = match plural {
        "nodes" => vec![
            Some(Column::computed("Status", node_status)),
            Some(Column::computed("Roles", node_roles)),
            age,
            path("Version", "string", ".status.nodeInfo.kubeletVersion"),
        ],
        "namespaces" => vec![path("Status", "string", ".status.phase"), age],
        "pods" => vec![
            Some(Column::computed("Ready", pod_ready)),
            path("Status", "string", ".status.phase"),
            Some(Column::computed("Restarts", pod_restarts)),
            age,
            path("IP", "string", ".status.podIP").map(|c| Column { priority: 1, ..c }),
            path("Node", "string", ".spec.nodeName").map(|c| Column { priority: 1, ..c }),
        ],
        "secrets" => {
            vec![path("Type", "string", ".type"), Some(Column::computed("Data", data_count)), age]
        }
        "configmaps" => vec![Some(Column::computed("Data", data_count)), age],
        "services" => vec![
            path("Type", "string", ".spec.type"),
            path("Cluster-IP", "string", ".spec.clusterIP"),
            age,
        ],
        "leases" => vec![path("Holder", "string", ".spec.holderIdentity"), age],
        "events" => vec![
            Some(Column::computed("Last Seen", event_age)),
            path("Type", "string", ".type"),
            path("Reason", "string", ".reason"),
            Some(Column::computed("Object", event_object)),
            path("Message", "string", ".message"),
        ],
        "customresourcedefinitions" => {
            vec![path("Created At", "string", ".metadata.creationTimestamp")]
        }
        _ => vec![age],
    };
    columns.into_iter().flatten().collect()
}

fn node_status(node: &Value) -> Value {
    let ready = JsonPath::parse(".status.conditions[?(@.type==\"Ready\")].status");
    let status = ready.as_ref().and_then(|path| path.first(node)).and_then(Value::as_str);
    let mut words = vec![match status {
        Some("True") => "Ready",
        Some("False") => "NotReady",
        _ => "Unknown",
    }];
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        words.push("SchedulingDisabled");
    }
    json!(words.join(","))
}

fn node_roles(node: &Value) -> Value {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let roles: Vec<&str> = labels
        .into_iter()
        .flat_map(|labels| labels.keys())
        .filter_map(|label| label.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    if roles.is_empty() { json!("<none>") } else { json!(roles.join(",")) }
}

fn pod_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten()
}

fn pod_ready(pod: &Value) -> Value {
    let ready = pod_containers(pod).filter(|c| c.get("ready") == Some(&Value::Bool(true))).count();
    let all = pod.pointer("/spec/containers").and_then(Value::as_array).map_or(0, Vec::len);
    json!(format!("{ready}/{all}"))
}

fn pod_restarts(pod: &Value) -> Value {
    let counts = pod_containers(pod).filter_map(|c| c.get("restartCount").and_then(Value::as_u64));
    json!(counts.fold(0, u64::saturating_add).to_string())
}

fn data_count(object: &Value) -> Value {
    let count = |key: &str| object.get(key).and_then(Value::as_object).map_or(0, |map| map.len());
    json!((count("data") + count("binaryData")).to_string())
}

fn event_age(event: &Value) -> Value {
    let times = ["lastTimestamp", "eventTime", "firstTimestamp"];
    let seen = times
        .iter()
        .find_map(|key| event.get(*key)?.as_str()?.parse::<k8s_openapi::jiff::Timestamp>().ok());
    match seen {
        Some(seen) => {
            let now = k8s_openapi::jiff::Timestamp::now();
            json!(human_duration(now.as_second().saturating_sub(seen.as_second())))
        }
        None => json!("<unknown>"),
    }
}

fn event_object(event: &Value) -> Value {
    let kind = text(event, "/involvedObject/kind").to_lowercase();
    json!(format!("{kind}/{}", text(event, "/involvedObject/name")))
}
