// SPDX-License-Identifier: Apache-2.0
//! Liveness, readiness and startup probes.
