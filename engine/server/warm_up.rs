//! The first steps of an engine, before anybody waits for them.

use qernel_core::engine::{Engine, Request};
use qernel_core::error::Result;

/// The model answers: tokens of it can be had. On a GPU prompts of several lengths let kernels and cuBLAS initialise
/// themselves, which would else take up to 0.1 s of the first requests' time, and 6 ms of each step with another rounded number of
/// rows.
pub fn warm_up(engine: &mut Engine) -> Result<()> {
    let lengths: &[usize] = if engine.runner().runs_ahead() { &[1, 32, 256] } else { &[1] };
    let (vocab_size, max_model_len) = (engine.runner().vocab_size(), engine.max_model_len());
    for (i, &length) in lengths.iter().enumerate().filter(|&(_, &length)| length < max_model_len) {
        // Each of another token, so that none takes what another has computed.
        make_token(engine, (i % vocab_size) as u32, length)?;
    }
    engine.runner_mut().warm_up()
}

/// One token behind a prompt of `length` times another.
pub fn make_token(engine: &mut Engine, token: u32, length: usize) -> Result<()> {
    let request = Request { max_tokens: Some(1), text: false, ..Request::new(vec![token; length]) };
    engine.run_to_end(request, &false.into(), |_| std::ops::ControlFlow::Continue(()))?;
    Ok(())
}
