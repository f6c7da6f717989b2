/* A program whose functions have the names that rustc gives them: the older ones with a hash, and the newer ones. */
#include <stdlib.h>

#define NAMED(function, name) \
    void function(void) __asm__(name); \
    __attribute__((noinline)) void function(void)
#define CALLS(function) \
    { \
        function(); \
        __asm__ volatile(""); \
    }

NAMED(rust_eh_personality, "rust_eh_personality") {}
NAMED(begin_unwind, "_RNvCs69_7___rustc17rust_begin_unwind") { abort(); }
NAMED(panic_fmt, "_ZN4core9panicking9panic_fmt17h2222222222222222E") CALLS(begin_unwind)
NAMED(unwrap_failed, "_ZN4core6option13unwrap_failed17h3333333333333333E") CALLS(panic_fmt)
NAMED(total, "_ZN4shop5total17h0123456789abcdefE") CALLS(unwrap_failed)
NAMED(closure, "_ZN4shop5order28_$u7b$$u7b$closure$u7d$$u7d$17hfedcba9876543210E") CALLS(total)
NAMED(next, "_ZN59_$LT$shop..Cart$u20$as$u20$core..iter..traits..Iterator$GT$4next17h1111111111111111E") CALLS(closure)
NAMED(apply, "_RINvCs1234_4shop5applyyE") CALLS(next)
NAMED(checkout, "_RNvCs1234_4shop8checkout") CALLS(apply)

int main(void) {
    checkout();
    return 0;
}
