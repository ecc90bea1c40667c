// SPDX-License-Identifier: Apache-2.0
//! The engine's entry: who asks for what, may they, and which verb answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::{
    allocate::Ranges,
    authn::User,
    authz,
    body::{self, Body},
    error::ApiError,
    kubelet::Kubelets,
    nonresource,
    present::{self, Form},
    registry,
    request::{Query, Target},
    resource::{Resource, Sub},
    verbs,
};
use crate::store::Store;

/// The API server without its sockets.
pub(crate) struct Api {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) ranges: Ranges,
    pub(crate) kubelets: Kubelets,
    pub(crate) server_version: String,
    pub(crate) ready: AtomicBool,
    /// Ends watches and proxied connections.
    pub(crate) stop: CancellationToken,
}

/// How strictly unknown fields are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// A request for a resource, parsed and authorised.
pub(crate) struct Call {
    pub(crate) row: &'static Resource,
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) form: Form,
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
}

impl Call {
    fn parse(
        row: &'static Resource,
        target: Target,
        query: Query,
        accept: &str,
    ) -> Result<Self, ApiError> {
        let dry_run = match query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::unprocessable(format!(
                    "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
                )));
            }
        };
        let validation = match query.get("fieldValidation") {
            Some("Ignore") => FieldValidation::Ignore,
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::unprocessable(format!(
                    "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        Ok(Self {
            form: Form::negotiate(accept, &query)?,
            row,
            target,
            query,
            dry_run,
            validation,
        })
    }

    /// The key of the named object.
    pub(crate) fn key(&self) -> String {
        self.row.key(&self.target.namespace, &self.target.name)
    }
}

impl Api {
    /// Answers any request.
    pub(crate) async fn handle(
        self: Arc<Self>,
        user: Option<User>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let accept = request
            .headers()
            .get(header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("*/*")
            .to_owned();
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let answer = self.route(user, request, &accept).await;
        let answer = answer.unwrap_or_else(|error| {
            tracing::debug!(%method, path, code = error.code, message = error.message, "refused");
            present::failure(&error)
        });
        if method == Method::HEAD {
            return answer.map(|_| body::empty());
        }
        answer
    }

    async fn route(
        self: Arc<Self>,
        user: Option<User>,
        request: Request<Incoming>,
        accept: &str,
    ) -> Result<Response<Body>, ApiError> {
        let path = request.uri().path().to_owned();
        if request.headers().contains_key(header::AUTHORIZATION) && user.is_none() {
            // No kind of token is known to this server.
            return Err(ApiError::unauthorized());
        }
        if let Some(answer) = nonresource::public(&self, &path) {
            return Ok(answer);
        }
        let Some(user) = user else {
            return Err(ApiError::unauthorized());
        };
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let Some(target) = Target::parse(&path) else {
            authz::check_path(&user, request.method(), &path)?;
            return nonresource::answer(&self, &path, accept);
        };
        let verb = target.verb(request.method(), &query);
        authz::check(&self, &user, verb, &target)?;
        let row = registry::find(&target.group, &target.version, &target.plural)
            .ok_or_else(ApiError::no_such_path)?;
        let call = Call::parse(row, target, query, accept)?;
        self.dispatch(&user, verb, call, request).await
    }

    async fn dispatch(
        self: Arc<Self>,
        user: &User,
        verb: &'static str,
        mut call: Call,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let row = call.row;
        if !row.namespaced && !call.target.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let named = !call.target.name.is_empty();
        if row.namespaced && named && call.target.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        if !call.target.subresource.is_empty() {
            let name = call.target.subresource.clone();
            let sub = row.sub(&name).ok_or_else(ApiError::no_such_path)?;
            return self.subresource(user, verb, sub, call, request).await;
        }
        match verb {
            "get" => verbs::get(&self, &call),
            "list" => verbs::list(&self, &call),
            "watch" => {
                if named {
                    // A watch of one object is a watch of the list that selects it.
                    call.query.add(
                        "fieldSelector",
                        &format!("metadata.name={}", call.target.name),
                    );
                }
                verbs::watch(&self, &call)
            }
            "create" if !named => {
                let object = body::object(request).await?;
                verbs::create(&self, &call, user, object).await
            }
            "update" => {
                let object = body::object(request).await?;
                verbs::update(&self, &call, user, None, object).await
            }
            "patch" => {
                let patch = body::patch(request).await?;
                verbs::patch(&self, &call, user, None, patch).await
            }
            "delete" => {
                let options = verbs::DeleteOptions::read(&call.query, request).await?;
                verbs::delete(&self, &call, options).await
            }
            "deletecollection" => {
                let options = verbs::DeleteOptions::read(&call.query, request).await?;
                verbs::delete_collection(&self, &call, options).await
            }
            _ => Err(ApiError::method_not_allowed(row)),
        }
    }

    async fn subresource(
        self: Arc<Self>,
        user: &User,
        verb: &'static str,
        sub: Sub,
        call: Call,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        match (sub, verb) {
            (Sub::Scale, "get") => verbs::scale_get(&self, &call),
            (Sub::Scale, "update") => {
                let object = body::object(request).await?;
                verbs::scale_update(&self, &call, user, object).await
            }
            (Sub::Scale, "patch") => {
                let patch = body::patch(request).await?;
                verbs::scale_patch(&self, &call, user, patch).await
            }
            (Sub::Status | Sub::Finalize | Sub::EphemeralContainers | Sub::Resize, "get") => {
                verbs::get(&self, &call)
            }
            (Sub::Status | Sub::Finalize, "update") => {
                let object = body::object(request).await?;
                verbs::update(&self, &call, user, Some(sub), object).await
            }
            (Sub::Status, "patch") => {
                let patch = body::patch(request).await?;
                verbs::patch(&self, &call, user, Some(sub), patch).await
            }
            (Sub::Binding, "create") => {
                let object = body::object(request).await?;
                verbs::bind(&self, &call, object).await
            }
            (Sub::Eviction, "create") => {
                let object = body::object(request).await?;
                verbs::evict(&self, &call, object).await
            }
            (Sub::Log, "get") => self.kubelets.log(&self, &call).await,
            (Sub::Exec | Sub::Attach | Sub::PortForward, "get" | "create") => {
                self.kubelets.stream(&self, sub, &call, request).await
            }
            (Sub::Token, _) => Err(ApiError::forbidden(
                "",
                "serviceaccounts/token",
                &call.target.name,
                "this server does not issue tokens",
            )),
            (Sub::Proxy | Sub::EphemeralContainers | Sub::Resize, _) => Err(ApiError::forbidden(
                call.row.group,
                &format!("{}/{}", call.row.plural, sub.name()),
                &call.target.name,
                "this server does not serve the subresource yet",
            )),
            _ => Err(ApiError::method_not_allowed(call.row)),
        }
    }

    /// Whether `/readyz` says ok.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}
