// Judge pictures with an exported model: OpenVINO runs it, OpenCV reads the pictures.
//
//     ./detect flange_60.onnx 0.146 64 64 photos/*.png
//     ./detect screw_60.onnx 0.146 448 1120 --tiles 128 128 0.25 photos/*.png
//
// model, image threshold, height and width of img_size, perhaps height and width of tile_size and tile_overlap (all in
// the JSON beside the model), pictures. Prints a line for each picture: verdict, score, path. Exit status: 0 all nominal,
// 1 at least one anomalous, 2 a mistake.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

// First pixels of tiles along a side: evenly spaced, with at least this share of a tile in common.
static std::vector<int> starts(int size, int tile, double overlap) {
    const int count = int(std::ceil((size - tile) / (tile * (1 - overlap)) - 1e-9)) + 1;
    std::vector<int> found(count, 0);
    for (int i = 1; i < count; ++i) found[i] = int(std::nearbyint(double(size - tile) * i / (count - 1)));
    return found;
}

// How much each pixel of a tile's map counts: less towards the rim.
static cv::Mat window(int height, int width) {
    cv::Mat weights(height, width, CV_32F);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            weights.at<float>(y, x) =
                float(std::pow(std::sin(CV_PI * (y + 0.5) / height) * std::sin(CV_PI * (x + 0.5) / width), 2));
    return weights;
}

int main(int argc, char** argv) {
    const bool tiled = argc > 5 && std::string(argv[5]) == "--tiles";
    const int first = tiled ? 9 : 5;
    if (argc <= first) {
        std::fprintf(stderr, "usage: %s MODEL THRESHOLD HEIGHT WIDTH [--tiles HEIGHT WIDTH OVERLAP] PICTURE...\n", argv[0]);
        return 2;
    }
    const double threshold = std::atof(argv[2]), overlap = tiled ? std::atof(argv[8]) : 0;
    const cv::Size size(std::atoi(argv[4]), std::atoi(argv[3]));
    const cv::Size tile = tiled ? cv::Size(std::atoi(argv[7]), std::atoi(argv[6])) : size;
    const cv::Mat weight = window(tile.height, tile.width);
    int status = 0;
    try {
        ov::Core core;
        auto model = core.read_model(argv[1]);
        model->reshape({{"image", ov::PartialShape{1, tile.height, tile.width, 3}}});
        // Full precision: some processors would compute in bfloat16 otherwise, and scores would differ a little.
        auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
        auto request = compiled.create_infer_request();
        for (int i = first; i < argc; ++i) {
            cv::Mat image = cv::imread(argv[i], cv::IMREAD_COLOR), resized, smooth;  // BGR, 8 bits, upright
            if (image.empty()) {
                std::fprintf(stderr, "failed    -        %s: not a picture\n", argv[i]);
                status = 2;
                continue;
            }
            cv::resize(image, resized, size, 0, 0, cv::INTER_LINEAR);
            cv::Mat map = cv::Mat::zeros(size, CV_32F), sum = cv::Mat::zeros(size, CV_32F);
            for (int top : starts(size.height, tile.height, overlap))
                for (int left : starts(size.width, tile.width, overlap)) {
                    const cv::Rect where(left, top, tile.width, tile.height);
                    cv::Mat part = resized(where).clone();
                    request.set_input_tensor(ov::Tensor(
                        ov::element::u8, {1, size_t(tile.height), size_t(tile.width), 3}, part.data));
                    request.infer();
                    const cv::Mat found(tile, CV_32F, request.get_tensor("anomaly_map").data<float>());
                    map(where) += found.mul(weight);
                    sum(where) += weight;
                }
            cv::blur(cv::min(map / sum, 1), smooth, cv::Size(21, 21), cv::Point(-1, -1), cv::BORDER_CONSTANT);
            double score;
            cv::minMaxLoc(smooth, nullptr, &score);
            std::printf("%-9s %.6f %s\n", score > threshold ? "anomalous" : "nominal", score, argv[i]);
            status = std::max(status, score > threshold ? 1 : 0);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
    return status;
}
