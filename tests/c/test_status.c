/* Numbers and names of the statuses: fixed for ever. */
#include "check.h"

int main(void) {
    static const struct {
        int32_t status;
        int32_t number;
        const char *name;
    } table[] = {
#define ROW(name, number) {name, number, #name}
        ROW(DOLLY_STATUS_OK, 0),
        ROW(DOLLY_STATUS_INVALID_ARGUMENT, 1),
        ROW(DOLLY_STATUS_NULL_POINTER, 2),
        ROW(DOLLY_STATUS_INVALID_HANDLE, 3),
        ROW(DOLLY_STATUS_INVALID_UTF8, 4),
        ROW(DOLLY_STATUS_INVALID_LENGTH, 5),
        ROW(DOLLY_STATUS_BUSY, 6),
        ROW(DOLLY_STATUS_OUT_OF_RANGE, 7),
        ROW(DOLLY_STATUS_NOT_AVAILABLE, 8),
        ROW(DOLLY_STATUS_PANIC, 9),
        ROW(DOLLY_STATUS_IO, 10),
        ROW(DOLLY_STATUS_NOT_FOUND, 11),
        ROW(DOLLY_STATUS_FORMAT, 12),
        ROW(DOLLY_STATUS_CONTEXT_OVERFLOW, 13),
        ROW(DOLLY_STATUS_MEMORY, 14),
        ROW(DOLLY_STATUS_DEVICE, 15),
        ROW(DOLLY_STATUS_UNSUPPORTED, 16),
        ROW(DOLLY_STATUS_NETWORK, 17),
        ROW(DOLLY_STATUS_CANCELLED, 18),
        ROW(DOLLY_STATUS_DEADLINE, 19),
        ROW(DOLLY_STATUS_CLOSED, 20),
        ROW(DOLLY_STATUS_INTERNAL, 21),
        ROW(DOLLY_STATUS_DIVERGED, 22),
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        CHECK(table[i].status == table[i].number);
        CHECK(strcmp(dolly_status_name(table[i].status), table[i].name) == 0);
    }
    CHECK(strcmp(dolly_status_name(-1), "DOLLY_STATUS_UNKNOWN") == 0);
    CHECK(strcmp(dolly_status_name(23), "DOLLY_STATUS_UNKNOWN") == 0);
    CHECK(sizeof(dolly_status) == 4);
    return all_freed();
}
