// SPDX-License-Identifier: Apache-2.0
//! The gRPC health protocol, version 1 (github.com/grpc/grpc-proto, grpc/health/v1/health.proto):
//! two messages and one call, written down here because that is all of it.

use std::time::Duration;

use tonic::transport::Endpoint;

use super::state::Outcome;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Asks `host:port` about `service`. The texts are upstream's.
pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let late = || {
        Outcome::Failure(format!(
            "timeout: failed to connect service \"{address}\" within {}s: context deadline exceeded",
            timeout.as_secs()
        ))
    };
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else {
        return Outcome::Unknown(format!("invalid gRPC address {address:?}"));
    };
    let ask = async {
        let channel = endpoint
            .user_agent("kube-probe/1.37")
            .ok()?
            .connect()
            .await
            .ok()?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.ok()?;
        let request = tonic::Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec: tonic_prost::ProstCodec<HealthCheckRequest, HealthCheckResponse> =
            Default::default();
        Some(client.unary(request, path, codec).await)
    };
    match tokio::time::timeout(timeout, ask).await {
        Err(_) | Ok(None) => late(),
        Ok(Some(Ok(answer))) => judge(answer.into_inner().status()),
        Ok(Some(Err(status))) => refused(&status, timeout),
    }
}

fn judge(status: ServingStatus) -> Outcome {
    let word = match status {
        ServingStatus::Serving => return Outcome::Success("service healthy".to_owned()),
        ServingStatus::Unknown => "UNKNOWN",
        ServingStatus::NotServing => "NOT_SERVING",
        ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
    };
    Outcome::Failure(format!("service unhealthy (responded with \"{word}\")"))
}

fn refused(status: &tonic::Status, timeout: Duration) -> Outcome {
    Outcome::Failure(match status.code() {
        tonic::Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        tonic::Code::DeadlineExceeded => {
            format!(
                "timeout: health rpc did not complete within {}s",
                timeout.as_secs()
            )
        }
        _ => format!("error: health rpc probe failed: {}", status.message()),
    })
}
