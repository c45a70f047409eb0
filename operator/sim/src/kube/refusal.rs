//! Refusals as the API server words them: a code, a reason and a `Status` object.

use bytes::Bytes;
use serde_json::{Value, json};

use super::kinds::Kind;

/// One field of an object that may not be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired` and so on, as in `StatusCause.reason`.
    pub reason: &'static str,
    /// The field's path, `spec.disks[0].size`.
    pub field: String,
    /// What is wrong with it, without the field's name.
    pub message: String,
}

impl Cause {
    /// A value that is not allowed.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        let message = format!("Invalid value: {}", message.into());
        Self { reason: "FieldValueInvalid", field: field.into(), message }
    }

    /// A value of the wrong JSON type.
    pub fn wrong_type(field: impl Into<String>, message: impl Into<String>) -> Self {
        let message = format!("Invalid value: {}", message.into());
        Self { reason: "FieldValueTypeInvalid", field: field.into(), message }
    }

    /// A value that must be there.
    pub fn required(field: impl Into<String>) -> Self {
        let message = "Required value".to_owned();
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    /// A value that may not be set or changed.
    pub fn forbidden(field: impl Into<String>, message: impl Into<String>) -> Self {
        let message = format!("Forbidden: {}", message.into());
        Self { reason: "FieldValueForbidden", field: field.into(), message }
    }

    /// Rules in CEL are not looked at where one of these stands (as in apiextensions-apiserver's
    /// `hasBlockingErr`).
    #[must_use]
    pub fn blocks_rules(&self) -> bool {
        matches!(
            self.reason,
            "FieldValueNotSupported"
                | "FieldValueRequired"
                | "FieldValueTooLong"
                | "FieldValueTooMany"
                | "FieldValueTypeInvalid"
        )
    }
}

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP code.
    pub code: u16,
    /// `Status.reason`.
    pub reason: &'static str,
    /// `Status.message`.
    pub message: String,
    /// `Status.details`, null if there are none.
    pub details: Value,
}

impl Refusal {
    /// A refusal without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    fn about(kind: &Kind, name: &str, code: u16, reason: &'static str, message: String) -> Self {
        let details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        Self { code, reason, message, details }
    }

    /// 404: no such object.
    #[must_use]
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.resource());
        Self::about(kind, name, 404, "NotFound", message)
    }

    /// 404: no such path.
    #[must_use]
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 405: the path is there, the verb is not.
    #[must_use]
    pub fn no_such_verb() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 409: an object of that name is there.
    #[must_use]
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.resource());
        Self::about(kind, name, 409, "AlreadyExists", message)
    }

    /// 409: someone else wrote since, or a precondition does not hold.
    #[must_use]
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
        Self::about(kind, name, 409, "Conflict", message)
    }

    /// 409: the resourceVersion sent is not the stored one.
    #[must_use]
    pub fn stale_write(kind: &Kind, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        Self::conflict(kind, name, why)
    }

    /// 403: not in this place.
    #[must_use]
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", kind.resource());
        Self::about(kind, name, 403, "Forbidden", message)
    }

    /// 422: the object is not one of its kind.
    #[must_use]
    pub fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        let told: Vec<String> =
            causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let told = match told.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let subject = if kind.group.is_empty() {
            kind.kind.clone()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let causes: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        let details =
            json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes});
        let message = format!("{subject} \"{name}\" is invalid: {told}");
        Self { code: 422, reason: "Invalid", message, details }
    }

    /// 410: the history asked for is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 504: a resourceVersion of the future.
    #[must_use]
    pub fn future(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let cause = "Too large resource version";
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": cause}],
            "retryAfterSeconds": 1,
        });
        let message = format!("Timeout: {message}");
        Self { code: 504, reason: "Timeout", message, details }
    }

    /// The `Status` object.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }

    /// [`Self::status`] as it goes over the wire.
    #[must_use]
    pub fn body(&self) -> Bytes {
        Bytes::from(self.status().to_string())
    }
}
