// SPDX-License-Identifier: Apache-2.0
//! NRI over a real socket, with plugins that speak the wire protocol.

mod adjust;
mod order;
mod plugin;
mod trouble;
