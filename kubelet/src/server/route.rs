// SPDX-License-Identifier: Apache-2.0
//! Which request is which: paths, methods, queries, and what each needs permission for. Pure.

use http::Method;

/// A container named by a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: Option<String>,
    /// Empty for port-forward, which goes to the pod.
    pub(super) container: String,
}

/// Everything that the node API does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Healthz,
    Pods,
    RunningPods,
    Logs(Target),
    Run(Target),
    Exec(Target),
    Attach(Target),
    PortForward(Target),
    StatsSummary,
    Metrics,
    MetricsResource,
}

/// Why a request is none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoute {
    NotFound,
    MethodNotAllowed,
}

/// Finds the route of a request.
pub(super) fn route(method: &Method, path: &str) -> Result<Route, NoRoute> {
    let parts: Vec<String> = path
        .trim_matches('/')
        .split('/')
        .map(|part| decode(part, false))
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let get = [Method::GET];
    let post = [Method::POST];
    let both = [Method::GET, Method::POST];
    let (route, methods): (Route, &[Method]) = match parts.as_slice() {
        ["healthz"] | ["healthz", "ping" | "syncloop"] => (Route::Healthz, &get),
        ["pods"] => (Route::Pods, &get),
        ["runningpods"] => (Route::RunningPods, &get),
        ["stats", "summary"] => (Route::StatsSummary, &get),
        ["metrics"] => (Route::Metrics, &get),
        ["metrics", "resource"] => (Route::MetricsResource, &get),
        ["containerLogs", ns, pod, container] => {
            (Route::Logs(target(ns, pod, None, container)), &get)
        }
        [verb, ns, pod, rest @ ..] => {
            let (route, methods) = streaming(verb, ns, pod, rest).ok_or(NoRoute::NotFound)?;
            (route, if methods == 1 { &post } else { &both })
        }
        _ => return Err(NoRoute::NotFound),
    };
    if methods.contains(method) {
        Ok(route)
    } else {
        Err(NoRoute::MethodNotAllowed)
    }
}

/// `/exec/{namespace}/{pod}[/{uid}]/{container}` and its relatives; and how many methods it has.
fn streaming(verb: &str, ns: &str, pod: &str, rest: &[&str]) -> Option<(Route, usize)> {
    let container = |rest: &[&str]| match rest {
        [container] => Some(target(ns, pod, None, container)),
        [uid, container] => Some(target(ns, pod, Some(uid), container)),
        _ => None,
    };
    Some(match verb {
        "run" => (Route::Run(container(rest)?), 1),
        "exec" => (Route::Exec(container(rest)?), 2),
        "attach" => (Route::Attach(container(rest)?), 2),
        "portForward" => match rest {
            [] => (Route::PortForward(target(ns, pod, None, "")), 2),
            [uid] => (Route::PortForward(target(ns, pod, Some(uid), "")), 2),
            _ => return None,
        },
        _ => return None,
    })
}

fn target(namespace: &str, pod: &str, uid: Option<&str>, container: &str) -> Target {
    Target {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(str::to_owned),
        container: container.to_owned(),
    }
}

/// The API verb of a method.
pub(super) fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The `nodes/…` subresources of which one is needed, as upstream prints them.
pub(super) fn subresources(path: &str) -> &'static str {
    let first = path.trim_start_matches('/').split('/').next();
    match first.unwrap_or_default() {
        "stats" => "[stats]",
        "metrics" => "[metrics]",
        "logs" => "[log]",
        "checkpoint" => "[checkpoint]",
        "healthz" => "[healthz proxy]",
        "pods" | "runningpods" => "[pods proxy]",
        "configz" => "[configz proxy]",
        _ => "[proxy]",
    }
}

/// The pairs of a query, in order.
pub(super) fn query(query: Option<&str>) -> Vec<(String, String)> {
    let pairs = query.unwrap_or_default().split('&');
    pairs
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        })
        .collect()
}

/// Undoes percent encoding; what isn't valid stays as it is.
fn decode(text: &str, form: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let value = hex.and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        match value {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(if form && bytes[at] == b'+' {
                    b' '
                } else {
                    bytes[at]
                });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_route_and_methods() {
        let check = |method: Method, path: &str, want: Result<Route, NoRoute>| {
            assert_eq!(route(&method, path), want, "{method} {path}");
        };
        let of = |uid| target("ns", "p", uid, "c");
        check(Method::GET, "/healthz", Ok(Route::Healthz));
        check(Method::GET, "/pods", Ok(Route::Pods));
        check(Method::GET, "/pods/", Ok(Route::Pods));
        check(Method::GET, "/runningpods/", Ok(Route::RunningPods));
        check(
            Method::GET,
            "/containerLogs/ns/p/c",
            Ok(Route::Logs(of(None))),
        );
        check(Method::POST, "/exec/ns/p/c", Ok(Route::Exec(of(None))));
        check(
            Method::GET,
            "/exec/ns/p/u/c",
            Ok(Route::Exec(of(Some("u")))),
        );
        check(Method::GET, "/attach/ns/p/c", Ok(Route::Attach(of(None))));
        check(Method::POST, "/run/ns/p/c", Ok(Route::Run(of(None))));
        let pod = target("ns", "p", Some("u"), "");
        check(
            Method::POST,
            "/portForward/ns/p/u",
            Ok(Route::PortForward(pod)),
        );
        check(Method::GET, "/stats/summary", Ok(Route::StatsSummary));
        check(Method::GET, "/metrics/resource", Ok(Route::MetricsResource));
        check(Method::POST, "/pods", Err(NoRoute::MethodNotAllowed));
        check(Method::GET, "/run/ns/p/c", Err(NoRoute::MethodNotAllowed));
        for path in [
            "/",
            "/spec",
            "/exec/ns/p",
            "/exec/a/b/c/d/e",
            "/metrics/x",
            "/portForward/a",
        ] {
            check(Method::GET, path, Err(NoRoute::NotFound));
        }
    }

    #[test]
    fn queries_keep_order_and_repetition() {
        assert_eq!(
            query(Some("command=sh&command=-c&command=a%20%26+b&tty&x=%zz")),
            [
                ("command", "sh"),
                ("command", "-c"),
                ("command", "a & b"),
                ("tty", ""),
                ("x", "%zz")
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert!(query(None).is_empty());
    }

    #[test]
    fn permissions_are_named_as_upstream_names_them() {
        assert_eq!(subresources("/stats/summary"), "[stats]");
        assert_eq!(subresources("/exec/a/b/c"), "[proxy]");
        assert_eq!(subresources("/pods"), "[pods proxy]");
        assert_eq!(verb(&Method::POST), "create");
    }
}
