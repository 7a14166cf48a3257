//! Functions compiled once as the crate is and once for wider vectors, and what they have in common.

/// Defines a function that runs a copy of itself compiled for the best vectors that the processor has. Whatever it calls
/// in its loops should be `#[inline(always)]`.
macro_rules! wide {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                #[expect(unsafe_code, reason = "instructions asked for at run time")]
                match crate::cpu::isa::best() {
                    // SAFETY: the processor has the instructions.
                    crate::cpu::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: likewise.
                    crate::cpu::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    crate::cpu::isa::Isa::Portable => {}
                }
            }
            plain($($arg),*)
        }
    };
}

pub(super) use wide;

/// Lanes to one number, half of them with the other half until one is left.
#[inline(always)]
pub(crate) fn folded<const LANES: usize>(mut lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = of(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}
