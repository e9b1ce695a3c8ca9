//! LLVM's own names for PTX instructions: the only way to state that an instruction is convergent.
//!
//! Names as in LLVM 22's `IntrinsicsNVVM.td`. The ABI `unadjusted` hands arguments over as LLVM types, so a
//! `bool` is an `i1` and a `repr(C)` struct of scalars an LLVM struct.
#![allow(improper_ctypes)]

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.x"]
    pub safe fn tid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.y"]
    pub safe fn tid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.z"]
    pub safe fn tid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.x"]
    pub safe fn ntid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.y"]
    pub safe fn ntid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.z"]
    pub safe fn ntid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.x"]
    pub safe fn ctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.y"]
    pub safe fn ctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.z"]
    pub safe fn ctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.x"]
    pub safe fn nctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.y"]
    pub safe fn nctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.z"]
    pub safe fn nctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.laneid"]
    pub safe fn laneid() -> u32;

    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    pub safe fn barrier_sync(barrier: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.count"]
    pub fn barrier_sync_count(barrier: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.count"]
    pub fn barrier_arrive_count(barrier: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.popc.aligned.all"]
    pub safe fn barrier_popc(barrier: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.red.and.aligned.all"]
    pub safe fn barrier_and(barrier: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    pub safe fn barrier_or(barrier: u32, predicate: bool) -> bool;

    #[link_name = "llvm.nvvm.bar.warp.sync"]
    pub fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.activemask"]
    pub safe fn activemask() -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    pub fn shfl_bfly(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    pub fn shfl_idx(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    pub fn shfl_up(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    pub fn shfl_down(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32p"]
    pub fn shfl_bfly_p(mask: u32, value: u32, lane: u32, clamp: u32) -> (u32, bool);
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32p"]
    pub fn shfl_idx_p(mask: u32, value: u32, lane: u32, clamp: u32) -> (u32, bool);
    #[link_name = "llvm.nvvm.shfl.sync.up.i32p"]
    pub fn shfl_up_p(mask: u32, value: u32, lane: u32, clamp: u32) -> (u32, bool);
    #[link_name = "llvm.nvvm.shfl.sync.down.i32p"]
    pub fn shfl_down_p(mask: u32, value: u32, lane: u32, clamp: u32) -> (u32, bool);
    #[link_name = "llvm.nvvm.vote.all.sync"]
    pub fn vote_all(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    pub fn vote_any(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    pub fn vote_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    pub fn match_any_32(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i64"]
    pub fn match_any_64(mask: u32, value: u64) -> u32;
    #[link_name = "llvm.nvvm.match.all.sync.i32p"]
    pub fn match_all_32(mask: u32, value: u32) -> (u32, bool);
    #[link_name = "llvm.nvvm.match.all.sync.i64p"]
    pub fn match_all_64(mask: u32, value: u64) -> (u32, bool);
    #[link_name = "llvm.nvvm.redux.sync.add"]
    pub fn redux_add(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.min"]
    pub fn redux_min(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.max"]
    pub fn redux_max(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    pub fn redux_umin(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    pub fn redux_umax(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.and"]
    pub fn redux_and(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.or"]
    pub fn redux_or(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.xor"]
    pub fn redux_xor(value: u32, mask: u32) -> u32;

    #[link_name = "llvm.nvvm.add.rn.f"]
    pub safe fn add_rn(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.mul.rn.f"]
    pub safe fn mul_rn(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.ex2.approx.f32"]
    pub safe fn ex2_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f32"]
    pub safe fn ex2_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.f"]
    pub safe fn lg2_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rsqrt.approx.f"]
    pub safe fn rsqrt_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.approx.ftz.f"]
    pub safe fn rcp_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.sin.approx.f"]
    pub safe fn sin_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.cos.approx.f"]
    pub safe fn cos_approx(x: f32) -> f32;

    #[link_name = "llvm.nvvm.elect.sync"]
    pub fn elect(mask: u32) -> (u32, bool);

    #[link_name = "llvm.nvvm.griddepcontrol.launch.dependents"]
    pub safe fn griddepcontrol_launch_dependents();
    #[link_name = "llvm.nvvm.griddepcontrol.wait"]
    pub safe fn griddepcontrol_wait();

    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x1.b16.p0"]
    pub fn ldmatrix_x1(row: *const u8) -> u32;
    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x1.trans.b16.p0"]
    pub fn ldmatrix_x1_trans(row: *const u8) -> u32;
    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x2.b16.p0"]
    pub fn ldmatrix_x2(row: *const u8) -> (u32, u32);
    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x2.trans.b16.p0"]
    pub fn ldmatrix_x2_trans(row: *const u8) -> (u32, u32);
    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p0"]
    pub fn ldmatrix_x4(row: *const u8) -> Words;
    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16.p0"]
    pub fn ldmatrix_x4_trans(row: *const u8) -> Words;

    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.bf16"]
    pub fn mma_k16_bf16(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Floats;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.bf16"]
    pub fn mma_k8_bf16(a0: u32, a1: u32, b: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Floats;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.tf32"]
    pub fn mma_k8_tf32(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Floats;
    #[link_name = "llvm.nvvm.mma.m16n8k32.row.col.s8"]
    pub fn mma_k32_s8(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: i32,
        c1: i32,
        c2: i32,
        c3: i32,
    ) -> Integers;
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.s8"]
    pub fn mma_k16_s8(a0: u32, a1: u32, b: u32, c0: i32, c1: i32, c2: i32, c3: i32) -> Integers;
}

// Not `unadjusted`: for that ABI rustc refuses vectors on a target whose vector registers it does not know.
// Under the Rust ABI the name `llvm.…` alone makes it pass them as LLVM's types.
unsafe extern "Rust" {
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.f32.f32"]
    pub fn mma_k16_f16(
        a0: F16x2,
        a1: F16x2,
        a2: F16x2,
        a3: F16x2,
        b0: F16x2,
        b1: F16x2,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Floats;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.f32.f32"]
    pub fn mma_k8_f16(a0: F16x2, a1: F16x2, b: F16x2, c0: f32, c1: f32, c2: f32, c3: f32) -> Floats;
}

/// LLVM's `{ i32, i32, i32, i32 }`.
#[repr(C)]
pub struct Words(pub u32, pub u32, pub u32, pub u32);

/// LLVM's `{ float, float, float, float }`.
#[repr(C)]
pub struct Floats(pub f32, pub f32, pub f32, pub f32);

/// LLVM's `{ i32, i32, i32, i32 }`, of sums.
#[repr(C)]
pub struct Integers(pub i32, pub i32, pub i32, pub i32);

/// LLVM's `<2 x half>`.
#[repr(simd)]
#[derive(Clone, Copy)]
pub struct F16x2([f16; 2]);

/// Two f16 from the register that holds them.
#[inline(always)]
pub fn f16x2(word: u32) -> F16x2 {
    // SAFETY: four bytes either way, every pattern valid.
    unsafe { core::mem::transmute(word) }
}
