// Judge pictures with an exported model: OpenVINO runs it, OpenCV reads the pictures.
//
//     ./detect flange_60.onnx 0.146 64 64 photos/*.png
//
// model, image threshold, height and width of img_size (all in the JSON beside the model), pictures. Prints a line for
// each picture: verdict, score, path. Exit status: 0 all nominal, 1 at least one anomalous, 2 a mistake.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: %s MODEL THRESHOLD HEIGHT WIDTH PICTURE...\n", argv[0]);
        return 2;
    }
    const double threshold = std::atof(argv[2]);
    const size_t height = std::atoi(argv[3]), width = std::atoi(argv[4]);
    int status = 0;
    try {
        ov::Core core;
        auto model = core.read_model(argv[1]);
        model->reshape({{"image", ov::PartialShape{1, int64_t(height), int64_t(width), 3}}});
        // Full precision: some processors would compute in bfloat16 otherwise, and scores would differ a little.
        auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
        auto request = compiled.create_infer_request();
        for (int i = 5; i < argc; ++i) {
            cv::Mat image = cv::imread(argv[i], cv::IMREAD_COLOR), resized;  // BGR, 8 bits, upright
            if (image.empty()) {
                std::fprintf(stderr, "failed    -        %s: not a picture\n", argv[i]);
                status = 2;
                continue;
            }
            cv::resize(image, resized, cv::Size(int(width), int(height)), 0, 0, cv::INTER_LINEAR);
            request.set_input_tensor(ov::Tensor(ov::element::u8, {1, height, width, 3}, resized.data));
            request.infer();
            const float score = request.get_tensor("score").data<float>()[0];
            std::printf("%-9s %.6f %s\n", score > threshold ? "anomalous" : "nominal", score, argv[i]);
            status = std::max(status, score > threshold ? 1 : 0);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
    return status;
}
