// SPDX-License-Identifier: Apache-2.0
//! The node API from outside: real TLS, a runtime that speaks CRI, log files.
