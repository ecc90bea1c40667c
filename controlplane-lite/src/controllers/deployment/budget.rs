// SPDX-License-Identifier: Apache-2.0
//! How many pods a Deployment may have too many or too few while it rolls out.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The strategy with its numbers resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) replicas: i32,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
    pub(crate) recreate: bool,
}

/// `maxSurge` or `maxUnavailable` is neither a number nor a percentage.
#[derive(Debug, thiserror::Error)]
#[error("spec.strategy.rollingUpdate.{field}: {value:?} is neither a number nor a percentage")]
pub(crate) struct BudgetError {
    field: &'static str,
    value: String,
}

impl Budget {
    /// Percentages of surge round up and of unavailability down; both zero makes one unavailable,
    /// or nothing could ever move (`ResolveFenceposts`).
    pub(crate) fn of(deployment: &Deployment) -> Result<Self, BudgetError> {
        let spec = &deployment.spec;
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.as_ref();
        let recreate = strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate");
        if recreate {
            return Ok(Self {
                replicas,
                max_surge: 0,
                max_unavailable: 0,
                recreate,
            });
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling
            .and_then(|r| r.max_surge.as_ref())
            .unwrap_or(&quarter);
        let unavailable = rolling
            .and_then(|r| r.max_unavailable.as_ref())
            .unwrap_or(&quarter);
        let max_surge = resolve("maxSurge", surge, replicas, true)?;
        let mut max_unavailable = resolve("maxUnavailable", unavailable, replicas, false)?;
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Ok(Self {
            replicas,
            max_surge,
            max_unavailable: max_unavailable.min(replicas),
            recreate,
        })
    }

    /// The most pods at any time.
    pub(crate) fn max_replicas(self) -> i32 {
        self.replicas + self.max_surge
    }

    /// The least available pods at any time.
    pub(crate) fn min_available(self) -> i32 {
        self.replicas - self.max_unavailable
    }
}

fn resolve(
    field: &'static str,
    value: &IntOrString,
    of: i32,
    up: bool,
) -> Result<i32, BudgetError> {
    match value {
        IntOrString::Int(number) => Ok((*number).max(0)),
        IntOrString::String(text) => {
            let error = || BudgetError {
                field,
                value: text.clone(),
            };
            let percent = text.strip_suffix('%').ok_or_else(error)?;
            let percent: u32 = percent.parse().map_err(|_| error())?;
            let product = i64::from(percent) * i64::from(of.max(0));
            let whole = if up {
                (product + 99) / 100
            } else {
                product / 100
            };
            i32::try_from(whole).map_err(|_| error())
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};

    use super::*;

    fn check(replicas: i32, surge: &str, unavailable: &str) -> (i32, i32) {
        let value = |text: &str| match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.to_owned()),
        };
        let deployment = Deployment {
            spec: DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(value(surge)),
                        max_unavailable: Some(value(unavailable)),
                    }),
                }),
                ..DeploymentSpec::default()
            },
            ..Deployment::default()
        };
        let budget = Budget::of(&deployment).expect("the numbers are valid");
        (budget.max_surge, budget.max_unavailable)
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        assert_eq!(check(10, "25%", "25%"), (3, 2));
        assert_eq!(check(2, "25%", "25%"), (1, 0));
        assert_eq!(check(1, "25%", "25%"), (1, 0));
        assert_eq!(check(10, "3", "2"), (3, 2));
    }

    #[test]
    fn something_can_always_move() {
        assert_eq!(check(10, "0", "0"), (0, 1));
        assert_eq!(check(3, "0", "10%"), (0, 1));
    }

    #[test]
    fn unavailable_is_not_more_than_there_are() {
        assert_eq!(check(3, "1", "9"), (1, 3));
    }

    #[test]
    fn nonsense_is_named() {
        let error = resolve("maxSurge", &IntOrString::String("lots".into()), 1, true);
        assert!(error.is_err_and(|e| e.to_string().contains("maxSurge")));
    }
}
