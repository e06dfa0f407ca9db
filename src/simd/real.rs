//! The floating-point types that lanes compute in.

/// A floating-point type that lanes compute in.
pub trait Real: Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// The largest finite value.
    const MAX: f64;
    /// Lanes scaled to stay below this and above its inverse neither overflow nor meet subnormals in a map.
    const LIMIT: f64;
    /// Same as [`LIMIT`](Self::LIMIT), for the squares of such values, with room for what they are multiplied by.
    const SQUARE_LIMIT: f64;
    /// 1.5 times the power of two from which on the type has only integers: adding it and subtracting it again rounds
    /// to the nearest integer.
    const ROUNDER: f64;
    /// `exp` clamps smaller arguments to this one, of which it is 0.
    const EXP_LIMIT: f64;
    /// ln 2 in two terms; the first is so short that its products with binary exponents are exact.
    const LN_2: [f64; 2];
    /// The degree at which the series of `exp`, for arguments up to 0.35, has an error below a rounding.
    const EXP_DEGREE: usize;
    /// Rounds to nearest.
    fn from_wide(v: f64) -> Self;
    /// Exact.
    fn to_wide(self) -> f64;
}

impl Real for f32 {
    const MAX: f64 = f32::MAX as f64;
    const LIMIT: f64 = f64::from_bits((1023 + 100) << 52); // 2^100
    const SQUARE_LIMIT: f64 = (1u64 << 40) as f64;
    const ROUNDER: f64 = (3u64 << 22) as f64;
    const EXP_LIMIT: f64 = -104.0;
    const LN_2: [f64; 2] = [355.0 / 512.0, -2.121_944_400_546_905_8e-4];
    const EXP_DEGREE: usize = 7;
    #[inline(always)]
    fn from_wide(v: f64) -> f32 {
        v as f32
    }
    #[inline(always)]
    fn to_wide(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const MAX: f64 = f64::MAX;
    const LIMIT: f64 = f64::from_bits((1023 + 500) << 52); // 2^500
    const SQUARE_LIMIT: f64 = f64::from_bits((1023 + 300) << 52); // 2^300
    const ROUNDER: f64 = (3u64 << 51) as f64;
    const EXP_LIMIT: f64 = -746.0;
    const LN_2: [f64; 2] = [f64::from_bits(0x3fe6_2e42_fee0_0000), 1.908_214_929_270_587_7e-10];
    const EXP_DEGREE: usize = 13;
    #[inline(always)]
    fn from_wide(v: f64) -> f64 {
        v
    }
    #[inline(always)]
    fn to_wide(self) -> f64 {
        self
    }
}
