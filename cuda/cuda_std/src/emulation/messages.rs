//! What atomics tell: releases leave their thread's knowledge at an address, acquires take it from there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use super::order::Knowledge;
use super::shadow::{ATOMICALLY, READ, UPDATE, WRITE};
use super::thread::{Place, Status, Thread, learn};
use crate::atomic::{Ordering, Scope};

/// What was left at an address.
#[derive(Default)]
pub struct Message {
    /// For everyone.
    device: Option<Arc<Knowledge>>,
    /// For the threads of this block.
    block: Option<(u32, Arc<Knowledge>)>,
}

/// The messages in global memory of one launch.
pub type Messages = Mutex<HashMap<usize, Message>>;

/// What an atomic operation does with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Load,
    Store,
    Update,
}

const fn acquires(order: Ordering) -> bool {
    matches!(order, Ordering::Acquire | Ordering::AcqRel | Ordering::SeqCst)
}

const fn releases(order: Ordering) -> bool {
    matches!(order, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst)
}

impl Message {
    fn publish(&mut self, told: &Arc<Knowledge>, access: Access, scope: Scope, block: u32) {
        // A plain store ends what earlier ones told; an update continues it.
        if access == Access::Store {
            *self = Self::default();
        }
        if scope != Scope::Block {
            learn(&mut self.device, told);
        }
        match &mut self.block {
            Some((owner, own)) if *owner == block => Arc::make_mut(own).join(told),
            other => *other = Some((block, told.clone())),
        }
    }
}

impl Thread {
    /// An atomic access of `size` bytes: checks it, runs `operation`, which returns the value that was there as
    /// bits, and orders memory as it asks for.
    pub fn atomic(
        &self,
        address: usize,
        size: usize,
        access: Access,
        (order, scope): (Ordering, Scope),
        place: Place,
        operation: impl FnOnce() -> u64,
    ) -> u64 {
        const ATOMIC_READ: u8 = READ | ATOMICALLY;
        const ATOMIC_WRITE: u8 = WRITE | ATOMICALLY;
        const ATOMIC_UPDATE: u8 = UPDATE | ATOMICALLY;
        match access {
            Access::Load => self.observe::<ATOMIC_READ>(address, size, size, place),
            Access::Store => self.observe::<ATOMIC_WRITE>(address, size, size, place),
            Access::Update => self.observe::<ATOMIC_UPDATE>(address, size, size, place),
        }
        let block = self.block();
        let in_shared = block.is_shared(address);
        let value = if !block.checks.get() {
            operation()
        } else if in_shared {
            self.exchange_messages(&mut block.messages.borrow_mut(), address, access, order, scope, operation)
        } else {
            let launch = block.launch();
            let silent = !acquires(order) && !releases(order) && self.released.borrow().is_none();
            if silent && !launch.has_messages.load(Relaxed) {
                operation()
            } else {
                launch.has_messages.store(true, Relaxed);
                let mut messages = launch.messages.lock().unwrap_or_else(PoisonError::into_inner);
                self.exchange_messages(&mut messages, address, access, order, scope, operation)
            }
        };
        self.yield_if_spinning(address, value, place);
        value
    }

    fn exchange_messages(
        &self,
        messages: &mut HashMap<usize, Message>,
        address: usize,
        access: Access,
        order: Ordering,
        scope: Scope,
        operation: impl FnOnce() -> u64,
    ) -> u64 {
        let block = self.block().index.get();
        if access != Access::Store
            && let Some(message) = messages.get(&address)
        {
            let mut heard = self.seen.borrow_mut();
            let mut hear = |news: &Arc<Knowledge>| {
                if acquires(order) {
                    self.learn(news);
                } else {
                    learn(&mut heard, news);
                }
            };
            if let (Some(news), true) = (&message.device, scope != Scope::Block) {
                hear(news);
            }
            if let Some((owner, news)) = &message.block
                && *owner == block
            {
                hear(news);
            }
        }
        if access != Access::Load {
            if releases(order) {
                let told = Arc::new(self.knowledge());
                messages.entry(address).or_default().publish(&told, access, scope, block);
                self.tick();
            } else if let Some(told) = &*self.released.borrow() {
                messages.entry(address).or_default().publish(told, access, scope, block);
            } else if access == Access::Store {
                messages.remove(&address);
            }
        }
        operation()
    }

    /// A fence: what came before it is told by the atomics behind it, and what those before it have seen is
    /// known from here on.
    pub fn fence(&self, order: Ordering) {
        if !self.block().checks.get() {
            return;
        }
        if acquires(order)
            && let Some(news) = self.seen.take()
        {
            self.learn(&news);
        }
        if releases(order) {
            self.released.replace(Some(Arc::new(self.knowledge())));
            self.tick();
        }
    }

    /// Lets others run after an atomic access, if it got the same answer as the one before.
    pub fn yield_if_spinning(&self, address: usize, value: u64, place: Place) {
        let this = (core::ptr::from_ref(place) as usize, address, value);
        if self.last_atomic.replace(this) == this {
            self.wait(Status::Spinning, place);
            return;
        }
        let block = self.block();
        block.step();
        // Elsewhere in the order every now and then, so that orders of atomics vary with the seed.
        if block.random.below(16) == 0 {
            self.wait(Status::Ready, place);
        }
    }
}
