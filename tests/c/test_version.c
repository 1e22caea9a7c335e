/* The macros of the header, the library's own words, and the version of the package agree. */
#include "check.h"

#ifndef PACKAGE_VERSION
#error "compile with -DPACKAGE_VERSION=\"MAJOR.MINOR.PATCH\" of Cargo.toml"
#endif

int main(void) {
    char macros[64];
    snprintf(macros, sizeof macros, "%d.%d.%d", DOLLY_VERSION_MAJOR, DOLLY_VERSION_MINOR,
             DOLLY_VERSION_PATCH);
    CHECK(strcmp(macros, PACKAGE_VERSION) == 0);
    CHECK(strcmp(dolly_version(), PACKAGE_VERSION) == 0);
    CHECK(dolly_abi_version() == DOLLY_ABI_VERSION);
    return all_freed();
}
