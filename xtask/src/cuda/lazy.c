/* Body of one lazily loaded library; the lines before it define LIBRARY, MISSING, ENTRY, NAMES, TEXTS.
 *
 * Every function of the library jumps through `slots`. The first call of each goes by way of
 * `entry`, which saves the registers that may hold arguments and asks `resolve` for the address.
 * Where the library or the function is missing, calls return MISSING, an error code of that library,
 * or a text where a text is returned.
 */
#include <dlfcn.h>
#include <stddef.h>

#define HIDDEN __attribute__((visibility("hidden")))

static const char *const names[] = {NAMES};
static const unsigned char gives_text[] = {TEXTS};

static int missing(void) { return MISSING; }
static const char *missing_text(void) { return "library not found: " LIBRARY; }

HIDDEN void *RESOLVE(void **slots, size_t index) {
    static void *library;
    void *loaded = __atomic_load_n(&library, __ATOMIC_ACQUIRE);
    if (loaded == NULL) {
        /* Two threads that come here together load it twice and get the same handle. */
        loaded = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
        __atomic_store_n(&library, loaded, __ATOMIC_RELEASE);
    }
    void *function = loaded != NULL ? dlsym(loaded, names[index]) : NULL;
    if (function == NULL) {
        function = gives_text[index] ? (void *)missing_text : (void *)missing;
    }
    __atomic_store_n(&slots[index], function, __ATOMIC_RELEASE);
    return function;
}
