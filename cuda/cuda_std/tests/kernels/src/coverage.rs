//! Kernels that call every function of `cuda_std`, so that all of them are compiled and assembled. The
//! results mean nothing; everything is written out so that nothing is dropped.

use cuda_std::prelude::*;
#[device]
use cuda_std::{
    async_copy,
    atomic::{self, AtomicAdd, AtomicInteger, AtomicWord, Ordering, Scope},
    grid::GridBarrier,
    mbarrier::Mbarrier,
    memory::{self, CachePolicy},
    mma::{self, MmaElement},
};

/// Where a kernel's values go.
#[device]
struct Sink {
    out: *mut u32,
}

#[device]
impl Sink {
    fn put<T: Bits>(&mut self, value: T) {
        unsafe {
            self.out.cast::<T>().write_unaligned(value);
            self.out = self.out.byte_add(size_of::<T>().next_multiple_of(4));
        }
    }
}

#[kernel(max_threads = 128, min_blocks = 4)]
pub unsafe fn cover_thread(out: *mut u32) {
    let mut sink = Sink { out };
    for index in [thread::thread_idx(), thread::block_idx(), thread::block_dim(), thread::grid_dim()] {
        sink.put([index.x, index.y, index.z]);
    }
    let ((x, y), (i, j, k)) = (thread::index_2d(), thread::index_3d());
    sink.put([x, y, i, j, k, thread::index(), thread::index_1d(), thread::warp_size()]);
    sink.put(u32::from(thread::first()));
    thread::sync_threads();
    sink.put([thread::sync_threads_count(x), thread::sync_threads_and(x), thread::sync_threads_or(x)]);
    unsafe {
        thread::sync_named(1, 64);
        thread::arrive_named(2, 64);
    }
    thread::block_fence();
    thread::device_fence();
    thread::grid_fence();
    thread::system_fence();
    thread::nanosleep(100);
    sink.put([thread::clock(), thread::multiprocessor_id()]);
    sink.put([thread::clock64(), thread::globaltimer()]);
}

#[kernel]
pub unsafe fn cover_warp(x: *const u32, out: *mut u32) {
    use warp::WarpReductionOp::{Add, And, Max, Min, Or, Xor};
    let mut sink = Sink { out };
    let (value, mask) = (unsafe { *x.add(thread::index_1d() as usize) }, warp::FULL_MASK);
    let float = f32::from_bits(value);
    sink.put([warp::lane_id(), warp::warp_id(), warp::activemask()]);
    unsafe {
        warp::sync_warp(mask);
        sink.put(u32::from(warp::warp_vote_all(mask, value > 1)));
        sink.put(u32::from(warp::warp_vote_any(mask, value > 2)));
        sink.put(warp::warp_vote_ballot(mask, value > 3));
        sink.put(warp::warp_match_any(mask, value));
        sink.put(warp::warp_match_any(mask, u64::from(value)));
        sink.put(warp::warp_match_all(mask, float).unwrap_or(0));
        sink.put(warp::warp_match_all(mask, f64::from(float)).unwrap_or(0));
        sink.put([Add, Min, Max, And, Or, Xor].map(|op| warp::warp_reduce(mask, value, op)));
        sink.put([Add, Min, Max, And, Or, Xor].map(|op| warp::warp_reduce(mask, value.cast_signed(), op)));
        for (value, inside) in [
            warp::warp_shuffle_down(mask, value, 1, 16),
            warp::warp_shuffle_up(mask, value, 1, 32),
            warp::warp_shuffle_idx(mask, value, 3, 8),
            warp::warp_shuffle_xor(mask, value, 3, 32),
        ] {
            sink.put([value, u32::from(inside)]);
        }
    }
    sink.put(warp::shuffle_xor(value as u8, 1));
    sink.put::<f16>(warp::shuffle_idx(Element::from_f32(float), 0));
    sink.put::<bf16>(warp::shuffle_up(Element::from_f32(float), 1));
    sink.put(warp::shuffle_down([float; 4], 1));
    sink.put(warp::shuffle_xor(f64::from(float), 1));
    sink.put([warp::reduce_sum(float), warp::reduce_max(float), warp::reduce_min(float)]);
    sink.put(warp::reduce(value, u32::max));
}

#[device]
unsafe fn cover_element<E: PackedElement>(sink: &mut Sink, x: *const E, out: *mut E) {
    unsafe {
        let mut lanes = E::load(x);
        for i in 0..E::LANES {
            lanes.as_mut()[i] += (*x.add(i)).to_f32();
        }
        E::store(out, lanes);
        *out.add(8) = E::from_f32(lanes.as_ref()[0]);
    }
    let (low, high) = E::unpack2(E::pack2(1.5, f32::NAN));
    sink.put([low, high]);
    sink.put(E::splat(low));
}

#[kernel]
pub unsafe fn cover_elements(f: *const f32, h: *const f16, b: *const bf16, out: *mut u32) {
    let mut sink = Sink { out };
    unsafe {
        cover_element(&mut sink, h, out.add(64).cast());
        cover_element(&mut sink, b, out.add(128).cast());
        sink.put(<f32 as Element>::load(f));
    }
}

#[kernel]
pub unsafe fn cover_float(x: f32, y: f32, z: f64, out: *mut u32) {
    let mut sink = Sink { out };
    macro_rules! unary {
        ($x:ident: $($name:ident),*) => { $(sink.put(GpuFloat::$name($x));)* };
    }
    unary!(x: floor, ceil, round, round_ties_even, trunc, fract, sqrt, rsqrt, exp, exp2, exp_m1, ln, ln_1p, log2, log10,
        cbrt, sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, asinh, acosh, atanh);
    unary!(z: floor, ceil, round, round_ties_even, trunc, fract, sqrt, rsqrt, exp, exp2, exp_m1, ln, ln_1p, log2, log10,
        cbrt, sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, asinh, acosh, atanh);
    sink.put([x.mul_add(x, y), x.fma(y, y), x.log(y), x.powf(y), x.powi(3), x.hypot(y), x.atan2(y)]);
    sink.put([z.mul_add(z, z), z.fma(z, 1.0), z.log(2.0), z.powf(z), z.powi(-3), z.hypot(1.0), z.atan2(1.0)]);
    let ((sin, cos), (sin64, cos64)) = (x.sin_cos(), z.sin_cos());
    sink.put([sin, cos]);
    sink.put([sin64, cos64]);
    sink.put([
        x.recip_approx(),
        x.exp_approx(),
        x.exp2_approx(),
        x.ln_approx(),
        x.log2_approx(),
        x.sin_approx(),
        x.cos_approx(),
    ]);
}

#[device]
unsafe fn cover_shared_type<T: Bits>(sink: &mut Sink, shared: Shared<u64>, value: T) {
    let shared = shared.cast::<T>();
    unsafe {
        shared.set(thread::thread_idx_x(), value);
        thread::sync_threads();
        sink.put(shared.add(1).get(thread::thread_idx_x()));
        thread::sync_threads();
    }
}

#[kernel]
pub unsafe fn cover_shared(x: *const [u32; 4], out: *mut u32) {
    let mut sink = Sink { out };
    let fixed = shared_array![u64; 512];
    let (dynamic, value) = (dynamic_shared::<u64>(), unsafe { *x });
    let [word, ..] = value;
    unsafe {
        cover_shared_type(&mut sink, fixed, word as u8);
        cover_shared_type(&mut sink, fixed, bf16::from_bits(word as u16));
        cover_shared_type(&mut sink, fixed, f16::from_bits(word as u16));
        cover_shared_type(&mut sink, fixed, f32::from_bits(word));
        cover_shared_type(&mut sink, dynamic, u64::from(word));
        cover_shared_type(&mut sink, dynamic, [f32::from_bits(word); 2]);
        cover_shared_type(&mut sink, dynamic, value);
        cover_shared_type(&mut sink, dynamic, [value; 2]);
        sink.put(*fixed.as_mut_ptr());
    }
    sink.put([fixed.address(), dynamic.address(), Shared::<u32>::from_address(16).address()]);
}

#[device]
unsafe fn cover_memory_type<T: Bits>(x: *const T, out: *mut T) {
    let mut i = 0;
    // Calls by name: a function pointer would be called, not inlined.
    macro_rules! each_load {
        ($($load:ident),*) => { $(
            unsafe { *out.add(i) = memory::$load(x.add(i)) };
            i += 1;
        )* };
    }
    macro_rules! each_store {
        ($value:expr, $($store:ident),*) => { $(
            i += 1;
            unsafe { memory::$store(out.add(i), $value) };
        )* };
    }
    each_load!(load, load_nc, load_nc_no_allocate, load_nc_no_allocate_256, load_nc_evict_first);
    each_load!(load_nc_evict_last, load_streaming, load_l2, load_volatile);
    let value = unsafe { *x.add(i) };
    each_store!(
        value,
        store,
        store_streaming,
        store_l2,
        store_no_allocate,
        store_evict_first,
        store_volatile
    );
}

#[kernel]
pub unsafe fn cover_memory(x: *const [u32; 4], out: *mut [u32; 4]) {
    unsafe {
        cover_memory_type::<u8>(x.cast(), out.cast());
        cover_memory_type::<bf16>(x.cast(), out.cast());
        cover_memory_type::<f32>(x.cast(), out.cast());
        cover_memory_type::<[f32; 2]>(x.cast(), out.cast());
        cover_memory_type::<[u32; 4]>(x, out);
        cover_memory_type::<[f32; 8]>(x.cast(), out.cast());
        let policy = CachePolicy::evict_first();
        memory::store_hinted(out, memory::load_nc_hinted(x, policy), CachePolicy::evict_last());
        *out.cast::<u64>() = CachePolicy::evict_unchanged().bits();
        memory::prefetch_l1(x);
        memory::prefetch_l2(x.add(64));
        memory::prefetch_l2_evict_last(x.add(128));
    }
}

/// Calls `$sink.put(T::$update(…, order, scope))` with every ordering as a constant.
#[device]
macro_rules! each_order {
    ($sink:ident, $type:ident::$update:ident($($argument:ident),*), $scope:ident) => {
        $sink.put($type::$update($($argument),*, Ordering::Relaxed, $scope));
        $sink.put($type::$update($($argument),*, Ordering::Acquire, $scope));
        $sink.put($type::$update($($argument),*, Ordering::Release, $scope));
        $sink.put($type::$update($($argument),*, Ordering::AcqRel, $scope));
        $sink.put($type::$update($($argument),*, Ordering::SeqCst, $scope));
    };
}

#[device]
#[inline(always)]
unsafe fn cover_atomic_word<T: AtomicWord>(sink: &mut Sink, place: *mut T, value: T, scope: Scope) {
    unsafe {
        sink.put(T::load(place, Ordering::Relaxed, scope));
        sink.put(T::load(place, Ordering::Acquire, scope));
        sink.put(T::load(place, Ordering::SeqCst, scope));
        T::store(place, value, Ordering::Relaxed, scope);
        T::store(place, value, Ordering::Release, scope);
        T::store(place, value, Ordering::SeqCst, scope);
        each_order!(sink, T::exchange(place, value), scope);
        each_order!(sink, T::compare_exchange(place, value, value), scope);
    }
}

#[device]
#[inline(always)]
unsafe fn cover_atomic_add<T: AtomicAdd>(sink: &mut Sink, place: *mut T, value: T, scope: Scope) {
    unsafe {
        cover_atomic_word(sink, place, value, scope);
        each_order!(sink, T::fetch_add(place, value), scope);
        T::add(place, value, Ordering::Relaxed, scope);
        T::add(place, value, Ordering::Release, scope);
    }
}

#[device]
#[inline(always)]
unsafe fn cover_atomic_integer<T: AtomicInteger>(sink: &mut Sink, place: *mut T, value: T, scope: Scope) {
    unsafe {
        cover_atomic_add(sink, place, value, scope);
        each_order!(sink, T::fetch_min(place, value), scope);
        each_order!(sink, T::fetch_max(place, value), scope);
        each_order!(sink, T::fetch_and(place, value), scope);
        each_order!(sink, T::fetch_or(place, value), scope);
        each_order!(sink, T::fetch_xor(place, value), scope);
    }
}

#[device]
#[inline(always)]
unsafe fn cover_atomic_scope(sink: &mut Sink, place: *mut u64, value: u64, scope: Scope) {
    unsafe {
        cover_atomic_integer(sink, place.cast(), value as u32, scope);
        cover_atomic_integer(sink, place.cast(), value as i32, scope);
        cover_atomic_integer(sink, place, value, scope);
        cover_atomic_integer(sink, place.cast(), value.cast_signed(), scope);
        cover_atomic_add(sink, place.cast(), value as f32, scope);
        cover_atomic_add(sink, place.cast(), value as f64, scope);
    }
    atomic::fence(Ordering::AcqRel, scope);
    atomic::fence(Ordering::SeqCst, scope);
}

#[kernel]
pub unsafe fn cover_atomic(place: *mut u64, value: u64, out: *mut u32) {
    let mut sink = Sink { out };
    unsafe {
        cover_atomic_scope(&mut sink, place, value, Scope::Block);
        cover_atomic_scope(&mut sink, place, value, Scope::Device);
        cover_atomic_scope(&mut sink, place, value, Scope::System);
    }
}

#[kernel]
pub unsafe fn cover_async_copy(x: *const u8, bytes: u32, out: *mut u32) {
    let (tile, places) = (dynamic_shared::<[u32; 4]>(), shared_array![u64; 1]);
    let mut sink = Sink { out };
    unsafe {
        async_copy::copy_4(tile, x);
        async_copy::copy_8(tile.add(1), x.add(8));
        async_copy::copy_16(tile.add(2), x.add(16));
        async_copy::commit_group();
        async_copy::copy_16_l2(tile.add(3), x.add(32));
        async_copy::copy_16_l2_256(tile.add(4), x.add(48));
        async_copy::copy_16_or_zero(tile.add(5), x.add(64), bytes);
        async_copy::commit_group();
        async_copy::wait_group::<1>();
        sink.put(tile.get(0));
        async_copy::wait_all();
        sink.put(tile.get(5));

        let barrier = Mbarrier::new(places);
        if thread::thread_idx_x() == 0 {
            barrier.init(2 * thread::block_dim_x());
        }
        thread::sync_threads();
        async_copy::copy_16_l2(tile, x);
        barrier.arrive_after_copies();
        barrier.arrive();
        while !barrier.test_wait(0) {}
        barrier.wait(0);
        sink.put(tile.get(0));
        thread::sync_threads();
        barrier.invalidate();
        sink.put(barrier.address());
    }
}

#[kernel(requires = "sm_90")]
pub unsafe fn cover_bulk_copy(x: *const u8, bytes: u32, out: *mut u32) {
    let (tile, places) = (dynamic_shared::<[u32; 4]>(), shared_array![u64; 1]);
    let barrier = Mbarrier::new(places);
    unsafe {
        if thread::thread_idx_x() == 0 {
            barrier.init(1);
            cuda_std::mbarrier::fence_init();
        }
        thread::sync_threads();
        if thread::thread_idx_x() == 0 {
            async_copy::bulk_prefetch_l2(x.add(65536), bytes);
            barrier.arrive_expect_tx(bytes);
            barrier.expect_tx(bytes);
            async_copy::bulk_copy(tile, x, bytes, barrier);
            async_copy::bulk_copy_hinted(tile.add(512), x, bytes, barrier, CachePolicy::evict_first());
        }
        while !barrier.try_wait(0) {}
        barrier.wait(0);
        let [word, ..] = tile.get(thread::thread_idx_x());
        tile.set(thread::thread_idx_x(), [word; 4]);
        async_copy::fence_proxy_async();
        async_copy::fence_proxy_async_shared();
        thread::sync_threads();
        if warp::elect(warp::FULL_MASK) {
            async_copy::bulk_store(out, tile, bytes);
            async_copy::bulk_commit_group();
            async_copy::bulk_wait_group_read::<1>();
            async_copy::bulk_wait_group::<0>();
        }
    }
}

#[device]
unsafe fn cover_mma_type<E: MmaElement>(tile: Shared<E>, out: *mut [f32; 4]) {
    unsafe {
        let row = tile.add(8 * warp::lane_id());
        let (a, b) = (mma::ldmatrix_x4(row), mma::ldmatrix_x2_trans(row));
        let c = E::mma_m16n8k16(a, b, [0.0; 4]);
        let c = E::mma_m16n8k16(mma::ldmatrix_x4_trans(row), mma::ldmatrix_x2(row), c);
        let ([b0], [b1]) = (mma::ldmatrix_x1(row), mma::ldmatrix_x1_trans(row));
        let c = E::mma_m16n8k8([a[0], a[1]], b0, c);
        *out.add(thread::thread_idx_x() as usize) = E::mma_m16n8k8([a[2], a[3]], b1, c);
    }
}

#[kernel]
pub unsafe fn cover_mma(out: *mut [f32; 4]) {
    unsafe {
        cover_mma_type::<bf16>(dynamic_shared(), out);
        cover_mma_type::<f16>(dynamic_shared(), out.add(32));
    }
}

#[kernel]
pub unsafe fn cover_grid_barrier(word: *mut u32, out: *mut u32) {
    unsafe {
        let barrier = GridBarrier::new(word);
        *out.add(thread::index() as usize) = 1;
        barrier.sync();
        let arrival = barrier.arrive();
        *out.add(thread::index() as usize) += memory::load_l2(out);
        barrier.wait(arrival);
        *out.add(thread::index() as usize) += memory::load_l2(out.add(1));
    }
}

#[kernel(requires = "sm_90")]
pub unsafe fn cover_dependent_launch(x: *const u32, out: *mut u32) {
    cuda_std::grid::wait_for_dependencies();
    let value = unsafe { *x.add(thread::index_1d() as usize) };
    cuda_std::grid::launch_dependents();
    unsafe { *out.add(thread::index_1d() as usize) = value };
}
