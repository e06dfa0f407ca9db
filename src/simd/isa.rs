//! Instruction sets, and which of them this CPU has.

/// An instruction set that the kernels are compiled for.
///
/// The choice affects speed only: results are bit-identical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// The `wide` crate over whatever the crate was compiled for: SSE2, NEON, wasm simd128 or scalar code.
    Portable,
    /// 256-bit code for x86-64 with AVX2 and F16C.
    Avx2,
    /// 512-bit code for x86-64 with AVX-512F, which is only used if the CPU also has what [`Avx2`](Self::Avx2) needs.
    Avx512,
}

impl Isa {
    /// The instruction sets that this CPU can run, slowest first. Never empty.
    ///
    /// ```
    /// use batchnorm::Isa;
    /// assert_eq!(Isa::available()[0], Isa::Portable);
    /// assert_eq!(Isa::available().last(), Some(&Isa::best()));
    /// ```
    pub fn available() -> &'static [Isa] {
        // A list for each combination of tiers that a CPU can have.
        const AVX512: &[Isa] = &[Isa::Portable, Isa::Avx2, Isa::Avx512];
        const AVX2: &[Isa] = &[Isa::Portable, Isa::Avx2];
        match Self::best() {
            Isa::Avx512 => AVX512,
            Isa::Avx2 => AVX2,
            Isa::Portable => &[Isa::Portable],
        }
    }

    /// The fastest instruction set that this CPU can run.
    pub fn best() -> Isa {
        Detected::best().isa()
    }

    /// Proof that this CPU runs this instruction set, if it does.
    pub(crate) fn detect(self) -> Option<Detected> {
        let runs = match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Isa::Avx2.detect().is_some() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        };
        runs.then_some(Detected(self))
    }
}

/// Proof that this CPU runs an instruction set: only detection makes one, and dispatch asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detected(Isa);

impl Detected {
    /// The fastest that this CPU has.
    pub(crate) fn best() -> Self {
        Isa::Avx512.detect().or_else(|| Isa::Avx2.detect()).unwrap_or(Self(Isa::Portable))
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}
