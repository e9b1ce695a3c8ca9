//! `mbarrier` instructions: see [`crate::mbarrier`].

use core::arch::asm;

#[inline(always)]
pub unsafe fn init(address: u32, arrivals: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "mbarrier.init.shared.b64 [{}], {};", in(reg32) address, in(reg32) arrivals,
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub unsafe fn invalidate(address: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.inval.shared.b64 [{}];", in(reg32) address, options(nostack, preserves_flags));
    }
}

#[inline(always)]
pub unsafe fn arrive(address: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [{}]; }}", in(reg32) address,
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub unsafe fn arrive_if(address: u32, condition: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .pred p; .reg .b64 state; setp.ne.b32 p, {1}, 0; @p mbarrier.arrive.shared.b64 state, [{0}]; }}",
            in(reg32) address, in(reg32) u32::from(condition), options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub unsafe fn arrive_expect_tx(address: u32, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};", in(reg32) address, in(reg32) bytes,
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub unsafe fn expect_tx(address: u32, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [{}], {};", in(reg32) address, in(reg32) bytes,
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub unsafe fn arrive_after_copies(address: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.mbarrier.arrive.noinc.shared.b64 [{}];", in(reg32) address,
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub unsafe fn test_wait(address: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [{1}], {2}; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) done, in(reg32) address, in(reg32) parity, options(nostack, preserves_flags)
        );
    }
    done != 0
}

#[inline(always)]
pub unsafe fn try_wait(address: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{1}], {2}; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) done, in(reg32) address, in(reg32) parity, options(nostack, preserves_flags)
        );
    }
    done != 0
}

#[inline(always)]
pub fn fence_init() {
    // SAFETY: orders memory accesses.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack, preserves_flags)) }
}
