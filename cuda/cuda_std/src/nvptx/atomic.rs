//! Atomic instructions: see [`crate::atomic`].

use core::arch::asm;

use crate::atomic::{AtomicAdd, AtomicInteger, AtomicWord, Ordering, Scope};

/// `$run!("<ordering>", "<scope>", …)` with PTX's words for an ordering and a scope.
macro_rules! choose {
    ($order:expr, $scope:expr, [$($pattern:pat => $word:literal),*], $run:ident!$arguments:tt) => {
        match $order {
            $($pattern => match $scope {
                Scope::Block => $run!($word, "cta", $arguments),
                Scope::Device => $run!($word, "gpu", $arguments),
                Scope::System => $run!($word, "sys", $arguments),
            },)*
            _ => panic!("this operation does not have this ordering"),
        }
    };
}

/// [`choose`] for a read-modify-write, which has every ordering.
macro_rules! choose_update {
    ($order:expr, $scope:expr, $run:ident!$arguments:tt) => {{
        fence_if_sequential($order, $scope);
        choose!(
            $order,
            $scope,
            [
                Ordering::Relaxed => "relaxed",
                Ordering::Acquire => "acquire",
                Ordering::Release => "release",
                Ordering::AcqRel | Ordering::SeqCst => "acq_rel"
            ],
            $run!$arguments
        )
    }};
}

#[inline(always)]
pub fn fence(order: Ordering, scope: Scope) {
    macro_rules! run {
        ($order:literal, $scope:literal, ()) => {
            // SAFETY: orders memory accesses.
            unsafe { asm!(concat!("fence.", $order, ".", $scope, ";"), options(nostack, preserves_flags)) }
        };
    }
    choose!(
        order,
        scope,
        [
            Ordering::SeqCst => "sc",
            Ordering::Acquire | Ordering::Release | Ordering::AcqRel => "acq_rel"
        ],
        run!()
    );
}

#[inline(always)]
fn fence_if_sequential(order: Ordering, scope: Scope) {
    if matches!(order, Ordering::SeqCst) {
        fence(order, scope);
    }
}

macro_rules! word {
    ($($t:ident, $class:ident, $size:literal;)*) => { $(
        impl AtomicWord for $t {
            #[inline(always)]
            unsafe fn load(pointer: *const Self, order: Ordering, scope: Scope) -> Self {
                macro_rules! run {
                    ($order:literal, $scope:literal, ($value:ident)) => {
                        asm!(
                            concat!("ld.", $order, ".", $scope, ".", $size, " {}, [{}];"),
                            out($class) $value, in(reg64) pointer, options(nostack, preserves_flags)
                        )
                    };
                }
                fence_if_sequential(order, scope);
                let value: $t;
                // SAFETY: the caller's promise.
                unsafe {
                    choose!(
                        order,
                        scope,
                        [Ordering::Relaxed => "relaxed", Ordering::Acquire | Ordering::SeqCst => "acquire"],
                        run!(value)
                    );
                }
                value
            }

            #[inline(always)]
            unsafe fn store(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) {
                macro_rules! run {
                    ($order:literal, $scope:literal, ()) => {
                        asm!(
                            concat!("st.", $order, ".", $scope, ".", $size, " [{}], {};"),
                            in(reg64) pointer, in($class) value, options(nostack, preserves_flags)
                        )
                    };
                }
                fence_if_sequential(order, scope);
                // SAFETY: the caller's promise.
                unsafe {
                    choose!(
                        order,
                        scope,
                        [Ordering::Relaxed => "relaxed", Ordering::Release | Ordering::SeqCst => "release"],
                        run!()
                    );
                }
            }

            update!(exchange, "exch", $size, $class);

            #[inline(always)]
            unsafe fn compare_exchange(
                pointer: *mut Self,
                expected: Self,
                new: Self,
                order: Ordering,
                scope: Scope,
            ) -> Self {
                macro_rules! run {
                    ($order:literal, $scope:literal, ($old:ident)) => {
                        asm!(
                            concat!("atom.", $order, ".", $scope, ".cas.", $size, " {}, [{}], {}, {};"),
                            out($class) $old, in(reg64) pointer, in($class) expected, in($class) new,
                            options(nostack, preserves_flags)
                        )
                    };
                }
                let old: $t;
                // SAFETY: the caller's promise.
                unsafe { choose_update!(order, scope, run!(old)) };
                old
            }
        }
    )* };
}

/// One method that is an `atom` instruction with one operand.
macro_rules! update {
    ($name:ident, $operation:literal, $type:literal, $class:ident) => {
        #[inline(always)]
        unsafe fn $name(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self {
            macro_rules! run {
                ($order:literal, $scope:literal, ($old:ident)) => {
                    asm!(
                        concat!("atom.", $order, ".", $scope, ".", $operation, ".", $type, " {}, [{}], {};"),
                        out($class) $old, in(reg64) pointer, in($class) value, options(nostack, preserves_flags)
                    )
                };
            }
            let old: Self;
            // SAFETY: the caller's promise.
            unsafe { choose_update!(order, scope, run!(old)) };
            old
        }
    };
}

macro_rules! add {
    ($($t:ident, $class:ident, $type:literal;)*) => { $(
        impl AtomicAdd for $t {
            update!(fetch_add, "add", $type, $class);

            #[inline(always)]
            unsafe fn add(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) {
                macro_rules! run {
                    ($order:literal, $scope:literal, ()) => {
                        asm!(
                            concat!("red.", $order, ".", $scope, ".add.", $type, " [{}], {};"),
                            in(reg64) pointer, in($class) value, options(nostack, preserves_flags)
                        )
                    };
                }
                // SAFETY: the caller's promise.
                unsafe {
                    choose!(
                        order,
                        scope,
                        [Ordering::Relaxed => "relaxed", Ordering::Release => "release"],
                        run!()
                    );
                }
            }
        }
    )* };
}

macro_rules! integer {
    ($($t:ident, $class:ident, $type:literal, $size:literal;)*) => { $(
        impl AtomicInteger for $t {
            update!(fetch_min, "min", $type, $class);
            update!(fetch_max, "max", $type, $class);
            update!(fetch_and, "and", $size, $class);
            update!(fetch_or, "or", $size, $class);
            update!(fetch_xor, "xor", $size, $class);
        }
    )* };
}

word! {
    u32, reg32, "b32";
    i32, reg32, "b32";
    f32, reg32, "b32";
    u64, reg64, "b64";
    i64, reg64, "b64";
    f64, reg64, "b64";
}

// PTX has no `add.s64`; modulo 2^64 the unsigned one is the same.
add! {
    u32, reg32, "u32";
    i32, reg32, "s32";
    f32, reg32, "f32";
    u64, reg64, "u64";
    i64, reg64, "u64";
    f64, reg64, "f64";
}

integer! {
    u32, reg32, "u32", "b32";
    i32, reg32, "s32", "b32";
    u64, reg64, "u64", "b64";
    i64, reg64, "s64", "b64";
}
