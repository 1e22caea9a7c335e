/* How a model is loaded: settings, their ranges, progress. */
#include "check.h"

struct seen {
    dolly_loader *loader;
    uint64_t calls, loaded, total;
};

static void on_progress(void *user_data, uint64_t loaded, uint64_t total, const char *tensor,
                        size_t tensor_len) {
    struct seen *seen = user_data;
    CHECK(loaded >= seen->loaded && loaded <= total);
    CHECK(tensor_len > 0 && tensor[0] != '\0');
    if (seen->calls++ == 0) {
        /* The settings in use may be changed and freed from inside. */
        OK(dolly_loader_set_threads(seen->loader, 2, ERR));
        OK(dolly_loader_free(seen->loader));
    }
    seen->loaded = loaded;
    seen->total = total;
}

static void refused(const char *path, dolly_loader *loader, dolly_status status) {
    dolly_pipeline *pipeline = NULL;
    GIVES(status, dolly_pipeline_load(TEXT(path), loader, &pipeline, ERR));
    CHECK(pipeline == NULL);
    OK(dolly_loader_free(loader));
}

static dolly_loader *fresh(void) {
    dolly_loader *loader = NULL;
    OK(dolly_loader_new(&loader, ERR));
    return loader;
}

int main(int argc, char **argv) {
    const char *path = model_path(argc, argv);
    dolly_loader *loader = fresh();
    struct seen seen = {loader, 0, 0, 0};
    OK(dolly_loader_set_device(loader, TEXT("cpu"), ERR));
    OK(dolly_loader_set_format(loader, TEXT("f32"), ERR));
    OK(dolly_loader_set_threads(loader, 1, ERR));
    OK(dolly_loader_set_context_length(loader, 64, ERR));
    OK(dolly_loader_set_memory_limit(loader, (uint64_t)1 << 30, ERR));
    OK(dolly_loader_set_max_batch(loader, 4, ERR));
    OK(dolly_loader_set_kv_cache(loader, TEXT("q8_0"), ERR));
    OK(dolly_loader_set_prefix_cache(loader, 0, ERR));
    OK(dolly_loader_set_packed_weights(loader, TEXT("/no/such/directory/to/make/\x01"), ERR));
    OK(dolly_loader_set_revision(loader, TEXT("main"), ERR));
    OK(dolly_loader_set_offline(loader, true, ERR));
    OK(dolly_loader_set_bundled_dir(loader, TEXT("/no/such/directory"), ERR));
    OK(dolly_loader_set_progress(loader, on_progress, &seen, ERR));
    dolly_pipeline *pipeline = NULL;
    OK(dolly_pipeline_load(TEXT(path), loader, &pipeline, ERR));
    CHECK(seen.calls > 1 && seen.loaded == seen.total && seen.total > 0);
    size_t context = 0;
    const char *format = NULL;
    size_t len = 0;
    OK(dolly_pipeline_context_length(pipeline, &context));
    OK(dolly_pipeline_weight_format(pipeline, &format, &len));
    uint64_t kept = 1;
    OK(dolly_pipeline_prefix_cache(pipeline, &kept));
    CHECK(kept == 0);
    CHECK(context == 64 && strcmp(format, "f32") == 0 && len == 3);
    OK(dolly_pipeline_free(pipeline));

    loader = fresh();
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT, dolly_loader_set_device(loader, TEXT("gpu"), ERR));
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT, dolly_loader_set_format(loader, TEXT("q9"), ERR));
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT, dolly_loader_set_kv_cache(loader, TEXT("q4_0"), ERR));
    OK(dolly_loader_set_progress(loader, NULL, NULL, ERR));
    OK(dolly_loader_set_threads(loader, 0, ERR));
    refused(path, loader, DOLLY_STATUS_INVALID_ARGUMENT);
    loader = fresh();
    OK(dolly_loader_set_memory_limit(loader, 1000, ERR));
    refused(path, loader, DOLLY_STATUS_MEMORY);
    loader = fresh();
    OK(dolly_loader_set_device(loader, TEXT("cuda:1"), ERR));
    refused(path, loader, DOLLY_STATUS_DEVICE);
    loader = fresh();
    OK(dolly_loader_set_adapter(loader, TEXT("/no/such/adapter"), ERR));
    refused(path, loader, DOLLY_STATUS_NOT_FOUND);
    loader = fresh();
    OK(dolly_loader_set_context_length(loader, SIZE_MAX, ERR));
    refused(path, loader, DOLLY_STATUS_INVALID_ARGUMENT);
    return all_freed();
}
