//! libFuzzer's way into [`shunt_fuzz::frame`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shunt_fuzz::frame::run(data));
