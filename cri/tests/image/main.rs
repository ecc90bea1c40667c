// SPDX-License-Identifier: Apache-2.0
//! The image store against a real registry (Debian's `docker-registry`), against a server that
//! lies, and with two processes' worth of users at a time. Needs root, as unpacking layers does.

mod command;
mod credentials;
mod damage;
mod full;
mod images;
mod implied;
mod killed;
mod liar;
mod local;
mod proxy;
mod registry;
mod remote;
