// SPDX-License-Identifier: Apache-2.0
//! Calls to kubelets: logs, and the streams of exec, attach and port-forward.
//!
//! A log is an ordinary response whose body is passed on as it comes. A stream is an upgraded
//! connection: once both sides have agreed, bytes are copied both ways untouched, so whatever
//! protocol the client and the container runtime speak goes through.

mod dial;
mod map;
mod splice;

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use self::dial::Dialer;
use super::{
    api::{Api, Call},
    body::Body,
    error::ApiError,
    resource::Sub,
    serve::ServeError,
};
use crate::pki::ServerFiles;

/// The way to kubelets.
pub(crate) struct Kubelets {
    dialer: Dialer,
}

impl Kubelets {
    /// Prepares TLS with the client certificate that kubelets accept.
    pub(crate) fn new(files: &ServerFiles) -> Result<Self, ServeError> {
        Ok(Self {
            dialer: Dialer::new(files)?,
        })
    }

    /// Answers `pods/log` with the kubelet's answer.
    pub(crate) async fn log(&self, api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
        let place = map::place(api, call)?;
        let path = map::log_path(call, &place)?;
        splice::fetch(&self.dialer, &place, &path, api.stop.clone()).await
    }

    /// Passes exec, attach or portforward through.
    pub(crate) async fn stream(
        &self,
        api: &Arc<Api>,
        sub: Sub,
        call: &Call,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let place = map::place(api, call)?;
        let path = map::stream_path(sub, call, &place)?;
        splice::upgrade(&self.dialer, &place, &path, request, api.stop.clone()).await
    }
}
