//! Run-time choice of instruction set.
//!
//! A kernel is written once as branch-free scalar code. `multiversion!` compiles it again with wider instructions
//! enabled and picks at run time what the CPU has. Rust never contracts or reorders floating-point operations, so all
//! versions give the same bits.

/// The instruction set that `multiversion!` functions use on this CPU.
pub fn level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            return "avx512";
        }
        if has_avx2() {
            return "avx2";
        }
        return "sse2";
    }
    #[cfg(target_arch = "aarch64")]
    return "neon";
    #[allow(unreachable_code)]
    "baseline"
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && has_avx2()
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2")
}

/// Define a function whose body is compiled for several instruction sets and dispatched at run time. Everything the
/// body calls must be `#[inline(always)]`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$(const $flag:ident: bool),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$(const $flag: bool),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$(const $flag: bool),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,bmi1,bmi2")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$(const $flag: bool),+>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$($flag),+>)? ($($arg),*) }
                #[target_feature(enable = "avx2,bmi1,bmi2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$(const $flag: bool),+>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$($flag),+>)? ($($arg),*) }
                if crate::simd::has_avx512() {
                    // SAFETY: the CPU has just said that it has these features.
                    return unsafe { avx512 $(::<$($flag),+>)? ($($arg),*) };
                }
                if crate::simd::has_avx2() {
                    // SAFETY: as above.
                    return unsafe { avx2 $(::<$($flag),+>)? ($($arg),*) };
                }
            }
            body $(::<$($flag),+>)? ($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Ask for numbers that will be read soon, so that they are on their way while others are worked on; at most as many as
/// leave half of a first-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const BYTES: usize = 1 << 14;
        const LINE: usize = 64;
        let size = core::mem::size_of::<T>().max(1);
        for line in values[..values.len().min(BYTES / size)].chunks((LINE / size).max(1)) {
            // SAFETY: a hint; the address is inside the slice.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}
