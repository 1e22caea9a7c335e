// Answers an instruction from C++11: handles in unique_ptr, failures as exceptions.
//
//     c++ -std=c++11 examples/cpp/generate.cpp $(pkg-config --cflags --libs dolly) -o generate
//     ./generate [MODEL [INSTRUCTION]]
#include <dolly.h>

#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

// A handle that frees itself.
template <typename T, dolly_status (*Free)(T *)>
struct Freed {
    void operator()(T *handle) const { Free(handle); }
};
using Pipeline = std::unique_ptr<dolly_pipeline, Freed<dolly_pipeline, dolly_pipeline_free>>;
using Options = std::unique_ptr<dolly_options, Freed<dolly_options, dolly_options_free>>;
using Result = std::unique_ptr<dolly_result, Freed<dolly_result, dolly_result_free>>;
using Error = std::unique_ptr<dolly_error, Freed<dolly_error, dolly_error_free>>;

// Throws what the error object says. `error` is what the call wrote, NULL if nothing.
void check(dolly_status status, dolly_error *error) {
    const Error owned(error);
    if (status == DOLLY_STATUS_OK) {
        return;
    }
    const char *message = "";
    std::size_t len = 0;
    if (owned) {
        dolly_error_message(owned.get(), &message, &len);
    }
    throw std::runtime_error(dolly_status_name(status) + (": " + std::string(message, len)));
}

Pipeline load(const std::string &model) {
    dolly_pipeline *handle = nullptr;
    dolly_error *error = nullptr;
    const dolly_status status =
        dolly_pipeline_load(model.data(), model.size(), nullptr, &handle, &error);
    check(status, error);
    return Pipeline(handle);
}

Options options(std::size_t max_new_tokens) {
    dolly_options *handle = nullptr;
    dolly_error *error = nullptr;
    dolly_status status = dolly_options_new(&handle, &error);
    check(status, error);
    Options owned(handle);
    status = dolly_options_set_max_new_tokens(owned.get(), max_new_tokens, &error);
    check(status, error);
    return owned;
}

std::string generate(const Pipeline &pipeline, const std::string &instruction,
                     const Options &options) {
    dolly_result *handle = nullptr;
    dolly_error *error = nullptr;
    const dolly_status status =
        dolly_generate(pipeline.get(), instruction.data(), instruction.size(), nullptr, 0,
                       options.get(), &handle, &error);
    check(status, error);
    const Result result(handle);
    const char *text = nullptr;
    std::size_t len = 0;
    check(dolly_result_text(result.get(), &text, &len), nullptr);
    return std::string(text, len);
}

}  // namespace

int main(int argc, char **argv) {
    try {
        const Pipeline pipeline = load(argc > 1 ? argv[1] : "dolly-nano");
        const std::string instruction = argc > 2 ? argv[2] : "Name three colours.";
        std::cout << generate(pipeline, instruction, options(64)) << '\n';
        return 0;
    } catch (const std::exception &failure) {
        std::cerr << failure.what() << '\n';
        return 1;
    }
}
