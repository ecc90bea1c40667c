// SPDX-License-Identifier: Apache-2.0
//! The control plane over real HTTPS: every test has a server of its own on a free port of
//! loopback, with its own folder.

mod controllers;
mod crash;
mod host;
mod kubelet;
mod objects;
mod runtime_classes;
mod security;
mod selection;
mod services;
mod watching;
