//! Rate limits of ports, in the words of CNI's `bandwidth`: ingress is what reaches whoever is behind the port, egress
//! what it sends.
#![forbid(unsafe_code)]

use super::Invalid;

/// Least rate, in bits per second: a byte.
pub const RATE_MIN: i64 = 8;
/// Greatest rate, in bits per second.
pub const RATE_MAX: i64 = 1_000_000_000_000;
/// Greatest burst, in bits: 128 GiB.
pub const RATE_BURST_MAX: i64 = 1 << 40;
/// Least burst where none is given, in bits: a GSO frame. Else it is a quarter of a second's: TCP that has lost a whole
/// window at an empty bucket is silent for 200 ms (Linux's least retransmission time), and what comes in meanwhile must
/// find room, or the rate is never reached.
const BURST_USUAL: u64 = 65_536 * 8;

/// How much may pass in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second, from the Ethernet header on, [`RATE_MIN`] to [`RATE_MAX`].
    pub bits: u64,
    /// Bits that may pass at once after a pause, 8 to [`RATE_BURST_MAX`].
    pub burst: u64,
}

/// The limits of a port; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Towards whoever is behind the port.
    pub ingress: Option<Rate>,
    /// From there into the switch.
    pub egress: Option<Rate>,
}

/// What becomes of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateChange {
    /// It stays as it is.
    #[default]
    Keep,
    /// There is none any more.
    Lift,
    /// It is this from now on.
    Set(Rate),
}

impl RateChange {
    /// The limit after the change.
    pub fn of(self, old: Option<Rate>) -> Option<Rate> {
        match self {
            Self::Keep => old,
            Self::Lift => None,
            Self::Set(rate) => Some(rate),
        }
    }
}

/// Checks a rate and its burst, as the fields of those names say them. Rate 0 lifts the limit.
pub(super) fn rate(
    fields: (&'static str, &'static str),
    rate: Option<i64>,
    burst: Option<i64>,
) -> Result<RateChange, Invalid> {
    let (rate_field, burst_field) = fields;
    let refuse = |field, value: i64, rule: String| {
        Err(Invalid::new(field, format!("{field} {value} is out of range: it must be {rule} bits")))
    };
    match (rate, burst) {
        (None, None) => Ok(RateChange::Keep),
        (None | Some(0), Some(_)) => {
            let rule = format!("{burst_field} goes with {rate_field} only: give both, or neither");
            Err(Invalid::new(burst_field, rule))
        }
        (Some(0), None) => Ok(RateChange::Lift),
        (Some(bits), _) if !(RATE_MIN..=RATE_MAX).contains(&bits) => {
            let rule = format!("0 (no limit), or {RATE_MIN} to {RATE_MAX} bits per second");
            Err(Invalid::new(rate_field, format!("{rate_field} {bits} is out of range: it must be {rule}")))
        }
        (Some(_), Some(bits)) if !(8..=RATE_BURST_MAX).contains(&bits) => {
            refuse(burst_field, bits, format!("8 to {RATE_BURST_MAX}"))
        }
        (Some(bits), burst) => {
            let bits = bits as u64;
            let burst = burst.map_or((bits / 4).max(BURST_USUAL), |burst| burst as u64);
            Ok(RateChange::Set(Rate { bits, burst }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(bits: Option<i64>, burst: Option<i64>) -> Result<RateChange, String> {
        rate(("ingress_rate", "ingress_burst"), bits, burst).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn bounds_of_rates_and_bursts() {
        let set = |bits, burst| Ok(RateChange::Set(Rate { bits, burst }));
        assert_eq!(checked(None, None), Ok(RateChange::Keep));
        assert_eq!(checked(Some(0), None), Ok(RateChange::Lift));
        assert_eq!(checked(Some(8), Some(8)), set(8, 8));
        assert_eq!(
            checked(Some(RATE_MAX), Some(RATE_BURST_MAX)),
            set(RATE_MAX as u64, RATE_BURST_MAX as u64)
        );
        for bad in [7, 1, -1, RATE_MAX + 1] {
            let message = checked(Some(bad), None).unwrap_err();
            assert!(message.starts_with(&format!("ingress_rate {bad} is out of range")), "{message}");
        }
        for bad in [7, 0, -1, RATE_BURST_MAX + 1] {
            let message = checked(Some(1000), Some(bad)).unwrap_err();
            assert!(message.starts_with(&format!("ingress_burst {bad} is out of range")), "{message}");
        }
        for without in [None, Some(0)] {
            assert!(checked(without, Some(8000)).unwrap_err().contains("goes with ingress_rate only"));
        }
    }

    #[test]
    fn the_usual_burst_is_a_quarter_of_a_second_and_a_whole_frame() {
        let burst = |bits| match checked(Some(bits), None) {
            Ok(RateChange::Set(rate)) => rate.burst,
            other => panic!("{other:?}"),
        };
        assert_eq!((burst(1000), burst(1_000_000_000)), (524_288, 250_000_000));
    }
}
