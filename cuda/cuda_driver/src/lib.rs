//! Lets `cust` link and the program start where there is no NVIDIA driver.
