// SPDX-License-Identifier: Apache-2.0
//! From the OCI spec's values, which are v1's, to what files want. Pure.

use super::{CgroupError, Rdma};

/// v2's word for no limit.
pub(super) fn or_max(value: i64) -> String {
    match value {
        ..0 => "max".to_owned(),
        value => value.to_string(),
    }
}

/// 0 or less: no limit.
pub(super) fn pids_max(value: i64) -> String {
    or_max(if value == 0 { -1 } else { value })
}

/// v1 shares (2 to 262144) to v2 weight (1 to 10000).
///
/// A curve through the smallest, the default (1024 to 100) and the largest value, as runc and crun
/// have it now. The straight line of before made 39 out of the default, so that a container weighed
/// less than half of what a process outside of any container does.
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        3..262_144 => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
        262_144.. => 10_000,
    }
}

/// BFQ's weight (10 to 1000) to io.weight (1 to 10000): a line from end to end.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.max(10)) - 10) * 9_999 / 990
}

/// v2 limits swap by itself; the OCI spec gives the sum, as v1 does. `limit` is the one on memory
/// that holds; `None` says that there is nothing to write.
pub(super) fn swap_alone(
    limit: Option<i64>,
    sum: Option<i64>,
) -> Result<Option<String>, CgroupError> {
    let refuse = |reason: &str| {
        Err(CgroupError::Invalid {
            field: "linux.resources.memory.swap".to_owned(),
            reason: reason.to_owned(),
        })
    };
    match (limit, sum) {
        // As on v1: no limit on memory is none on the sum.
        (Some(-1), None) | (_, Some(-1)) => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (None | Some(..0), Some(_)) => refuse("unable to set swap limit without memory limit"),
        (Some(limit), Some(sum)) if sum < limit => {
            refuse("memory+swap limit should be >= memory limit")
        }
        (Some(limit), Some(sum)) => Ok(Some((sum - limit).to_string())),
    }
}

pub(super) fn rdma_line(limit: &Rdma) -> String {
    let mut line = limit.device.clone();
    for (key, value) in [("hca_handle", limit.handles), ("hca_object", limit.objects)] {
        if let Some(value) = value {
            line.push_str(&format!(" {key}={value}"));
        }
    }
    line
}

/// A size of huge pages as the kernel's files are named: `2MB`.
pub(super) fn page_size_name(kilobytes: u64) -> String {
    match kilobytes {
        ..1_024 => format!("{kilobytes}KB"),
        1_024..1_048_576 => format!("{}MB", kilobytes >> 10),
        _ => format!("{}GB", kilobytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        let known = [
            (0, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (1 << 40, 10_000),
        ];
        for (shares, expected) in known {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!(weight(512) < weight(1024) && weight(1024) < weight(2048));
    }

    #[test]
    fn block_weights_go_from_end_to_end() {
        assert_eq!(
            (io_weight(10), io_weight(1000), io_weight(0)),
            (1, 10_000, 1)
        );
    }

    #[test]
    fn swap_is_what_the_sum_leaves() {
        let max = Some("max".to_owned());
        assert_eq!(swap_alone(Some(100), Some(150)).unwrap(), Some("50".into()));
        assert_eq!(swap_alone(Some(100), Some(100)).unwrap(), Some("0".into()));
        assert_eq!(swap_alone(Some(100), Some(-1)).unwrap(), max);
        assert_eq!(swap_alone(Some(-1), None).unwrap(), max);
        assert_eq!(swap_alone(Some(100), None).unwrap(), None);
        assert!(swap_alone(None, Some(100)).is_err());
        assert!(swap_alone(Some(-1), Some(100)).is_err());
        assert!(swap_alone(Some(101), Some(100)).is_err());
    }

    #[test]
    fn sizes_have_the_kernels_names() {
        let names = [64, 2048, 1 << 20].map(page_size_name);
        assert_eq!(names, ["64KB", "2MB", "1GB"]);
    }

    #[test]
    fn rdma_lines_say_only_what_is_limited() {
        let limit = Rdma {
            device: "mlx5_0".into(),
            handles: Some(3),
            objects: None,
        };
        assert_eq!(rdma_line(&limit), "mlx5_0 hca_handle=3");
    }
}
