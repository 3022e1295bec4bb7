//! Discovery and OpenAPI documents: how clients learn what is served.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::resource::{Catalog, Resource};

/// The minor version of Kubernetes whose semantics are followed.
const MINOR: &str = "36";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Which form of discovery a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiscoveryForm {
    /// One document a group and version.
    Plain,
    /// Everything in one document, in this version of apidiscovery.k8s.io.
    Aggregated(&'static str),
}

impl DiscoveryForm {
    /// The first form in an Accept header that is known.
    pub(super) fn of_accept(accept: &str) -> DiscoveryForm {
        for part in accept.split(',').filter(|part| part.contains("g=apidiscovery.k8s.io")) {
            for version in ["v2", "v2beta1"] {
                if part.split(';').any(|p| p.trim().strip_prefix("v=") == Some(version)) {
                    return DiscoveryForm::Aggregated(version);
                }
            }
        }
        DiscoveryForm::Plain
    }

    /// The content type of an answer.
    pub(super) fn content_type(self) -> String {
        match self {
            DiscoveryForm::Plain => "application/json".to_owned(),
            DiscoveryForm::Aggregated(version) => format!(
                "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
            ),
        }
    }
}

/// `/version`.
pub(super) fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR, "gitVersion": format!("v1.{MINOR}.0+cairn-lab"),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn versions_by_group(catalog: &Catalog) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in catalog.all() {
        groups.entry(&resource.group).or_default().insert(&resource.version);
    }
    groups
}

fn group_document(group: &str, versions: &BTreeSet<&str>) -> Value {
    let entry =
        |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let listed: Vec<Value> = versions.iter().map(entry).collect();
    let preferred = listed.last().cloned().unwrap_or(Value::Null);
    json!({"name": group, "versions": listed, "preferredVersion": preferred})
}

/// `/api`.
pub(super) fn core_versions() -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    })
}

/// `/apis`.
pub(super) fn groups(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = versions_by_group(catalog)
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_document(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub(super) fn group(catalog: &Catalog, group: &str) -> Result<Value, ApiError> {
    let groups = versions_by_group(catalog);
    let versions = groups.get(group).ok_or_else(ApiError::no_such_resource)?;
    let mut document = group_document(group, versions);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Ok(document)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(super) fn resources(catalog: &Catalog, group: &str, version: &str) -> Result<Value, ApiError> {
    let mut listed = Vec::new();
    let mut api_version = None;
    for resource in catalog.all().filter(|r| r.group == group && r.version == version) {
        api_version.get_or_insert_with(|| resource.api_version());
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular,
            "namespaced": resource.namespaced, "kind": resource.kind,
            "verbs": resource.verbs(), "storageVersionHash": "",
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        listed.push(entry);
        if resource.status {
            listed.push(json!({
                "name": format!("{}/status", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": resource.kind,
                "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let api_version = api_version.ok_or_else(ApiError::no_such_resource)?;
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version, "resources": listed,
    }))
}

/// Aggregated discovery: of core under `/api`, of every other group under `/apis`.
pub(super) fn aggregated(catalog: &Catalog, core: bool, form_version: &str) -> Value {
    let groups = versions_by_group(catalog);
    let items: Vec<Value> = groups
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .rev()
                .map(|version| {
                    let resources: Vec<Value> = catalog
                        .all()
                        .filter(|r| r.group == *group && r.version == *version)
                        .map(|resource| aggregated_resource(resource))
                        .collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{form_version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let mut entry = json!({
        "resource": resource.plural, "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular, "verbs": resource.verbs(),
        "shortNames": resource.short_names, "categories": resource.categories,
    });
    if resource.status {
        entry["subresources"] = json!([{
            "subresource": "status", "responseKind": kind, "verbs": ["get", "patch", "update"],
        }]);
    }
    entry
}

fn openapi_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the documents are. The hash changes whenever a CRD does.
pub(super) fn openapi_index(catalog: &Catalog, revision: u64) -> Value {
    let mut paths = Map::new();
    for (group, versions) in versions_by_group(catalog) {
        for version in versions {
            let path = openapi_path(group, version);
            let url = format!("/openapi/v3/{path}?hash={revision}");
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// `/openapi/v3/apis/GROUP/VERSION`.
pub(super) fn openapi_document(catalog: &Catalog, path: &str) -> Result<Value, ApiError> {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    let served = |r: &&std::sync::Arc<Resource>| openapi_path(&r.group, &r.version) == path;
    for resource in catalog.all().filter(served) {
        let kind = json!({
            "group": resource.group, "version": resource.version, "kind": resource.kind,
        });
        let name = schema_name(resource);
        schemas.insert(name.clone(), openapi_schema(resource, &kind));
        let base = if resource.namespaced {
            format!("/{path}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("/{path}/{}", resource.plural)
        };
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        paths.insert(base.clone(), openapi_collection(&kind, &reference));
        paths.insert(format!("{base}/{{name}}"), openapi_object(&kind, &reference));
    }
    if paths.is_empty() {
        return Err(ApiError::no_such_resource());
    }
    schemas.insert(OBJECT_META.to_owned(), object_meta());
    Ok(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": format!("v1.{MINOR}.0")},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

fn schema_name(resource: &Resource) -> String {
    let group = if resource.group.is_empty() { "core.k8s.io" } else { &resource.group };
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.push(&resource.version);
    parts.push(&resource.kind);
    parts.join(".")
}

fn openapi_schema(resource: &Resource, kind: &Value) -> Value {
    let mut schema = resource.openapi.clone();
    let Some(map) = schema.as_object_mut() else { return schema };
    map.insert("x-kubernetes-group-version-kind".to_owned(), json!([kind]));
    let properties = map.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert(
            "apiVersion".to_owned(),
            json!({"type": "string", "description": "The versioned schema of this object."}),
        );
        properties.insert(
            "kind".to_owned(),
            json!({"type": "string", "description": "The REST resource that this object represents."}),
        );
        properties.insert(
            "metadata".to_owned(),
            json!({
                "description": "Standard object's metadata.",
                "allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}],
            }),
        );
    }
    schema
}

fn parameters() -> Value {
    ["dryRun", "fieldManager", "fieldValidation"]
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}))
        .collect()
}

fn operation(action: &str, kind: &Value, reference: &Value) -> Value {
    json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind,
        "parameters": parameters(),
        "responses": {"200": {
            "description": "OK", "content": {"application/json": {"schema": reference}},
        }},
    })
}

fn openapi_collection(kind: &Value, reference: &Value) -> Value {
    json!({
        "get": operation("list", kind, reference),
        "post": operation("post", kind, reference),
    })
}

fn openapi_object(kind: &Value, reference: &Value) -> Value {
    json!({
        "get": operation("get", kind, reference),
        "put": operation("put", kind, reference),
        "patch": operation("patch", kind, reference),
        "delete": operation("delete", kind, reference),
    })
}

fn object_meta() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let strings = |description: &str| {
        json!({
            "type": "object", "description": description,
            "additionalProperties": {"type": "string", "default": ""},
        })
    };
    json!({
        "type": "object",
        "description": "What all persisted resources have in common.",
        "properties": {
            "name": text("Unique within a namespace."),
            "generateName": text("A prefix of which the server makes a unique name."),
            "namespace": text("The space within which the name must be unique."),
            "uid": text("Unique in time and space."),
            "resourceVersion": text("The internal version of this object."),
            "generation": {"type": "integer", "format": "int64", "description": "Counts changes of the desired state."},
            "creationTimestamp": {"type": "string", "format": "date-time", "description": "When it was created."},
            "deletionTimestamp": {"type": "string", "format": "date-time", "description": "When its deletion was asked for."},
            "deletionGracePeriodSeconds": {"type": "integer", "format": "int64", "description": "Seconds until it goes."},
            "labels": strings("For organizing and selecting objects."),
            "annotations": strings("Arbitrary data of tools."),
            "finalizers": {
                "type": "array", "items": {"type": "string", "default": ""},
                "description": "Must be empty before the object is deleted.",
                "x-kubernetes-list-type": "set",
            },
            "ownerReferences": {
                "type": "array", "description": "The objects that this one depends on.",
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"],
            },
            "managedFields": {
                "type": "array", "description": "Who owns which fields.",
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        },
    })
}
