// SPDX-License-Identifier: Apache-2.0
//! Load balancers for bare machines: a Service of type LoadBalancer gets the addresses of nodes, and
//! every node's service proxy answers on them.

mod claims;
mod controller;

pub(crate) use controller::Controller;
