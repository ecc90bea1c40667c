// SPDX-License-Identifier: Apache-2.0
//! The whole node, from outside: the real executable in test hosts on this kernel.

mod bad_input;
mod churn;
mod command_line;
mod crash;
mod deployment;
mod dns;
mod families;
mod guest;
mod harness;
mod network;
mod network_faults;
mod network_policy;
mod overlay;
mod pods;
mod run;
mod runtime_class;
mod sctp;
mod services;
mod static_pods;
mod streams;
mod tidy;
mod userns;
