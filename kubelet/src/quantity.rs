// SPDX-License-Identifier: Apache-2.0
//! Exact arithmetic on resource quantities (`100m`, `1Gi`, `0.5`, `1e3`).
//!
//! A quantity is kept as a whole number of nano units, which is the finest step that the API
//! allows; anything finer is rounded up, as the API does. Nothing here touches floating point.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

const NANO: i128 = 1_000_000_000;
/// The API caps the magnitude of every quantity at this value.
const MAX_VALUE: i128 = i64::MAX as i128;
/// More digits than this cannot change the outcome, because of the cap.
const MAX_LEN: usize = 128;

/// A string that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantity {text:?}: {problem}")]
pub struct QuantityError {
    text: String,
    problem: &'static str,
}

/// An exact amount of a resource. Ordered and compared by value, so `1` equals `1000m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Quantity {
    nanos: i128,
}

impl Quantity {
    /// Reads the grammar of `resource.Quantity` (kubernetes/apimachinery, `pkg/api/resource`).
    ///
    /// # Errors
    /// A text that does not follow the grammar. Values above 2^63-1 are capped, not refused.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text).map_err(|problem| QuantityError {
            text: text.chars().take(MAX_LEN).collect(),
            problem,
        })
    }

    /// Reads the API's own type.
    ///
    /// # Errors
    /// As [`Quantity::parse`].
    pub fn from_api(quantity: &ApiQuantity) -> Result<Self, QuantityError> {
        Self::parse(&quantity.0)
    }

    /// A whole number of units: bytes, cores, pods.
    #[must_use]
    pub fn from_value(value: i64) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
        }
    }

    /// A number of thousandths: the usual unit for CPU.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANO / 1000),
        }
    }

    /// Whole units, rounded away from zero as the API does (`100m` is 1).
    #[must_use]
    pub fn value(self) -> i64 {
        saturate(div_away(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    #[must_use]
    pub fn milli_value(self) -> i64 {
        saturate(div_away(self.nanos, NANO / 1000))
    }

    /// True for zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// The sum, capped like every quantity.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self {
            nanos: (self.nanos + other.nanos).clamp(-MAX_VALUE * NANO, MAX_VALUE * NANO),
        }
    }

    /// The difference, capped like every quantity.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        self.saturating_add(Self {
            nanos: -other.nanos,
        })
    }

    /// How often `divisor` fits, rounded up: the value that a `resourceFieldRef` yields.
    /// A zero divisor counts as one, as the API's defaulting does.
    #[must_use]
    pub fn divide_rounding_up(self, divisor: Self) -> i64 {
        let divisor = if divisor.is_zero() {
            NANO
        } else {
            divisor.nanos
        };
        saturate(div_away(self.nanos, divisor))
    }

    /// The API's type in plain decimal form: `1500m`, `2`, `1073741824`.
    #[must_use]
    pub fn to_api(self) -> ApiQuantity {
        if self.nanos % NANO == 0 {
            ApiQuantity((self.nanos / NANO).to_string())
        } else {
            ApiQuantity(format!("{}m", div_away(self.nanos, NANO / 1000)))
        }
    }
}

/// `bytes` as the API shows memory: in `Ki` when that is exact.
#[must_use]
pub fn binary_kilo(bytes: i64) -> ApiQuantity {
    if bytes != 0 && bytes % 1024 == 0 {
        ApiQuantity(format!("{}Ki", bytes / 1024))
    } else {
        ApiQuantity(bytes.to_string())
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds away from zero.
fn div_away(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    if rest == 0 {
        quotient
    } else if (rest < 0) == (by < 0) {
        quotient + 1
    } else {
        quotient - 1
    }
}

fn parse(text: &str) -> Result<Quantity, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > MAX_LEN {
        return Err("is too long");
    }
    let (negative, unsigned) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err("must start with a number");
    }
    let magnitude = scale(whole, fraction, suffix_scale(suffix)?);
    let nanos = if negative { -magnitude } else { magnitude };
    Ok(Quantity { nanos })
}

/// What a suffix multiplies with: a power of ten or of two.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn suffix_scale(suffix: &str) -> Result<Scale, &'static str> {
    Ok(match suffix {
        "n" => Scale::Ten(-9),
        "u" => Scale::Ten(-6),
        "m" => Scale::Ten(-3),
        "" => Scale::Ten(0),
        "k" => Scale::Ten(3),
        "M" => Scale::Ten(6),
        "G" => Scale::Ten(9),
        "T" => Scale::Ten(12),
        "P" => Scale::Ten(15),
        "E" => Scale::Ten(18),
        "Ki" => Scale::Two(10),
        "Mi" => Scale::Two(20),
        "Gi" => Scale::Two(30),
        "Ti" => Scale::Two(40),
        "Pi" => Scale::Two(50),
        "Ei" => Scale::Two(60),
        other => {
            let exponent = other
                .strip_prefix(['e', 'E'])
                .ok_or("has an unknown suffix")?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err("has a malformed exponent");
            }
            Scale::Ten(
                exponent
                    .parse()
                    .map_err(|_| "has an exponent out of range")?,
            )
        }
    })
}

/// `whole.fraction` times the scale in nano units, rounded up, capped.
fn scale(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let cap = MAX_VALUE * NANO;
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // Bounded by MAX_LEN, so it fits.
    let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let (power, factor) = match scale {
        Scale::Ten(power) => (power, 1),
        Scale::Two(power) => (0, 1i128 << power),
    };
    let power = power.saturating_add(9).saturating_sub(places);
    shift_decimal(digits, factor, power).map_or(cap, |nanos| nanos.min(cap))
}

/// `digits * factor * 10^power`, rounded up; `None` when that is beyond any cap.
fn shift_decimal(digits: &str, factor: i128, power: i32) -> Option<i128> {
    let mut digits = digits;
    let mut power = power;
    let mut inexact = false;
    // Cut what can only influence the rounding, so that the multiplication below can't overflow:
    // 36 digits hold every value under the cap, in nano units and times 2^60 or not.
    while digits.len() > 19 && power < 0 && digits.len() > 1 {
        let (rest, last) = digits.split_at(digits.len() - 1);
        inexact |= last != "0";
        digits = rest;
        power += 1;
    }
    if digits.len() > 37 {
        return None;
    }
    let mut value = digits.parse::<i128>().ok()?.checked_mul(factor)?;
    if power >= 0 {
        for _ in 0..power.min(64) {
            value = value.checked_mul(10)?;
        }
    } else {
        for _ in 0..power.unsigned_abs().min(64) {
            inexact |= value % 10 != 0;
            value /= 10;
        }
    }
    Some(value + i128::from(inexact))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, value: i64, millis: i64) {
        let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(quantity.value(), value, "value of {text}");
        assert_eq!(quantity.milli_value(), millis, "milli value of {text}");
    }

    #[test]
    fn every_notation_is_exact() {
        check("0", 0, 0);
        check("100m", 1, 100);
        check("1", 1, 1000);
        check("0.5", 1, 500);
        check(".5", 1, 500);
        check("5.", 5, 5000);
        check("1e3", 1000, 1_000_000);
        check("1E3", 1000, 1_000_000);
        check("1E", 1_000_000_000_000_000_000, i64::MAX);
        check("12e-1", 2, 1200);
        check("1Ki", 1024, 1_024_000);
        check("1.5Gi", 1_610_612_736, 1_610_612_736_000);
        check("1k", 1000, 1_000_000);
        check("128Mi", 134_217_728, 134_217_728_000);
        check("-1500m", -2, -1500);
        check("+3", 3, 3000);
        check("1n", 1, 1);
        check("0.1m", 1, 1);
        check("0.0000000001", 1, 1);
        check("0.00000000000000000000000000001Ki", 1, 1);
    }

    #[test]
    fn values_beyond_the_range_are_capped() {
        check("8Ei", i64::MAX, i64::MAX);
        check(
            "99999999999999999999999999999999999999999999",
            i64::MAX,
            i64::MAX,
        );
        check("1e500", i64::MAX, i64::MAX);
        check("-1e40", -i64::MAX, i64::MIN);
        check("1e-500", 1, 1);
        check("7Ei", 8_070_450_532_247_928_832, i64::MAX);
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "", "m", "1.2.3", "1 Gi", "1gi", "1e", "1e+", "abc", "--1", "+", ".", "1KiB",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(
            Quantity::parse("1gi").map_err(|e| e.to_string()),
            Err(r#"quantity "1gi": has an unknown suffix"#.to_owned())
        );
    }

    #[test]
    fn division_rounds_up_and_a_zero_divisor_is_one() {
        let check = |value: &str, divisor: &str, want: i64| {
            let value = Quantity::parse(value).expect("valid");
            let divisor = Quantity::parse(divisor).expect("valid");
            assert_eq!(value.divide_rounding_up(divisor), want);
        };
        check("250m", "1", 1);
        check("250m", "1m", 250);
        check("64Mi", "1Mi", 64);
        check("100M", "1Mi", 96);
        check("1Gi", "0", 1_073_741_824);
    }

    #[test]
    fn the_printed_form_parses_back() {
        for text in ["1500m", "2", "1Gi", "250m", "0"] {
            let quantity = Quantity::parse(text).expect("valid");
            assert_eq!(Quantity::from_api(&quantity.to_api()), Ok(quantity));
        }
        assert_eq!(binary_kilo(2048).0, "2Ki");
        assert_eq!(binary_kilo(1000).0, "1000");
    }
}
