// SPDX-License-Identifier: Apache-2.0
//! A row of the table of served kinds. Every verb works on any row.

use serde_json::Value;

use super::{schema::Decoder, strategy::field::FieldErrors, table::Columns};

/// How an object's name must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain: labels with dots, at most 253 characters.
    Subdomain,
    /// RFC 1123 label: at most 63 characters.
    Label,
    /// RFC 1035 label: a label that starts with a letter.
    Label1035,
}

/// A subresource that has an object of its own shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sub {
    Status,
    Scale,
    Finalize,
    Binding,
    Eviction,
    EphemeralContainers,
    Resize,
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
    Token,
}

impl Sub {
    /// The path segment.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
        }
    }
}

/// Functions that know a kind. The engine knows everything else.
#[derive(Clone, Copy)]
pub(crate) struct Strategy {
    /// Fills in what upstream fills in.
    pub(crate) default: fn(&mut Value),
    /// Sets what a client may not choose, on create.
    pub(crate) prepare_create: fn(&mut Value),
    /// Sets what a client may not change, on update. The second value is the stored object.
    pub(crate) prepare_update: fn(&mut Value, &Value),
    /// What is wrong with an object.
    pub(crate) validate: fn(&Value, &mut FieldErrors),
    /// What must not be changed. New, then old.
    pub(crate) validate_update: fn(&Value, &Value, &mut FieldErrors),
}

impl Strategy {
    /// A kind with nothing of its own.
    pub(crate) const NONE: Self = Self {
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
    };
}

/// Conversion of a version that is not the stored one.
#[derive(Clone, Copy)]
pub(crate) struct View {
    /// From what the client sends to what is stored.
    pub(crate) to_stored: fn(Value) -> Value,
    /// From what is stored to what the client sees.
    pub(crate) from_stored: fn(Value) -> Value,
}

/// One served kind.
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// First part of the keys that objects are stored under.
    pub(crate) stored: &'static str,
    pub(crate) view: Option<View>,
    pub(crate) subresources: &'static [Sub],
    /// Whether `metadata.generation` counts changes of `spec`.
    pub(crate) generation: bool,
    pub(crate) name_rule: NameRule,
    /// Fields that a field selector may name, besides `metadata.name` and `metadata.namespace`.
    pub(crate) selectable: &'static [&'static str],
    pub(crate) columns: Columns,
    pub(crate) decode: Decoder,
    pub(crate) strategy: Strategy,
}

impl Resource {
    /// `v1` or `<group>/<version>`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `<plural>` or `<plural>.<group>`, as error messages name it.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `<Kind>` or `<Kind>.<group>`.
    pub(crate) fn qualified_kind(&self) -> String {
        if self.group.is_empty() {
            self.kind.to_owned()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }

    /// The key of an object.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}/{namespace}/{name}", self.stored)
    }

    /// What the keys of a namespace, or of all of them, start with.
    pub(crate) fn prefix(&self, namespace: &str) -> String {
        if namespace.is_empty() {
            format!("{}/", self.stored)
        } else {
            format!("{}/{namespace}/", self.stored)
        }
    }

    /// Whether the subresource is served.
    pub(crate) fn sub(&self, name: &str) -> Option<Sub> {
        self.subresources.iter().copied().find(|s| s.name() == name)
    }
}
