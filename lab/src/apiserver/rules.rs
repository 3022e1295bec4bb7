//! CEL rules (x-kubernetes-validations) of a custom resource.

use kube_cel::{CompiledSchema, ErrorKind, RootContext, Validator};
use serde_json::Value;

use super::error::{FieldError, FieldErrorKind};
use super::jsonpath::JsonPath;

/// The compiled rules of one version of a CRD.
pub(super) struct Rules {
    compiled: CompiledSchema,
    context: RootContext,
    any: bool,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("any", &self.any).finish_non_exhaustive()
    }
}

impl Rules {
    /// Compiles every rule of a schema.
    ///
    /// # Errors
    /// A [`FieldError`] with the compiler's words for the first rule that does not compile.
    pub(super) fn compile(
        schema: &Value,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Result<Rules, FieldError> {
        let compiled = kube_cel::compile_schema(schema);
        if let Some(error) = first_error(&compiled) {
            let path = "spec.validation.openAPIV3Schema.x-kubernetes-validations";
            let detail = format!("compilation failed: {error}");
            return Err(FieldError::invalid(path, &Value::Null, detail));
        }
        let context = RootContext {
            api_version: format!("{group}/{version}"),
            api_group: group.to_owned(),
            kind: kind.to_owned(),
        };
        let any = has_rules(&compiled);
        Ok(Rules { compiled, context, any })
    }

    /// Whether there is any rule at all.
    pub(super) fn exist(&self) -> bool {
        self.any
    }

    /// Evaluates all rules; a rule of a node that has not changed since `old` is not held against
    /// the write, as with the real server's ratcheting.
    pub(super) fn check(
        &self,
        validator: &Validator,
        object: &Value,
        old: Option<&Value>,
    ) -> Vec<FieldError> {
        if !self.any {
            return Vec::new();
        }
        let outcome = validator.validate_compiled_with_context(
            &self.compiled,
            object,
            old,
            Some(&self.context),
        );
        let failures = outcome.err().map(kube_cel::ValidationErrors::into_vec).unwrap_or_default();
        let mut errors = Vec::new();
        for failure in failures {
            let path = failure.field_path.as_str();
            let at = |root: &Value| JsonPath::parse(path).and_then(|p| p.first(root).cloned());
            if failure.kind == ErrorKind::ValidationFailure
                && let Some(old) = old
                && let (Some(before), Some(after)) = (at(old), at(object))
                && before == after
                && !failure.rule.contains("oldSelf")
            {
                continue;
            }
            let kind = match failure.reason.as_deref() {
                Some("FieldValueForbidden") => FieldErrorKind::Forbidden,
                Some("FieldValueRequired") => FieldErrorKind::Required,
                Some("FieldValueDuplicate") => FieldErrorKind::Duplicate,
                _ => FieldErrorKind::Invalid,
            };
            let shown = at(object).unwrap_or(Value::Null);
            let mut error = FieldError::new(kind, path, &shown, failure.message.clone());
            // The value is that of the node at which the rule stands, also when the rule's fieldPath
            // names one below; those that are no scalars are not shown.
            if shown.is_object() || shown.is_array() || names_field(&self.compiled, &failure.rule) {
                error.value.clear();
            }
            errors.push(error);
        }
        errors
    }
}

fn children(node: &CompiledSchema) -> impl Iterator<Item = &CompiledSchema> {
    node.properties
        .values()
        .chain(node.items.as_deref())
        .chain(node.additional_properties.as_deref())
        .chain(&node.all_of)
        .chain(&node.one_of)
        .chain(&node.any_of)
}

/// Whether a rule of this text below a node has a fieldPath.
fn names_field(node: &CompiledSchema, rule: &str) -> bool {
    let here =
        |one: &kube_cel::CompilationResult| one.rule.rule == rule && one.rule.field_path.is_some();
    node.validations.iter().flatten().any(here)
        || children(node).any(|child| names_field(child, rule))
}

fn has_rules(node: &CompiledSchema) -> bool {
    !node.validations.is_empty() || children(node).any(has_rules)
}

fn first_error(node: &CompiledSchema) -> Option<String> {
    node.compilation_errors()
        .first()
        .map(ToString::to_string)
        .or_else(|| children(node).find_map(first_error))
}
