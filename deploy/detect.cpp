// Detect anomalies in images of 8 bits with an exported model. OpenVINO runs the model, OpenCV reads the images.
//
//     ./detect flange_60.onnx 0.146 64 64 images/*.png
//     ./detect screw_60.onnx 0.146 448 1120 --tiles 128 128 0.25 images/*.png
//
// Arguments: model, image threshold, height and width (img_size), with tiles their height and width (tile_size) and
// tile_overlap, then the images. The values are in the JSON file beside the model.
// Prints a line for each image: result, score, path. Exit status: 0 all nominal, 1 at least one anomalous, 2 an error.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

// First pixels of the tiles along a side: evenly spaced, overlapping by at least `overlap` of a tile.
static std::vector<int> starts(int size, int tile, double overlap) {
    const int count = int(std::ceil((size - tile) / (tile * (1 - overlap)) - 1e-9)) + 1;
    std::vector<int> pixels(count, 0);
    for (int i = 1; i < count; ++i) pixels[i] = int(std::nearbyint(double(size - tile) * i / (count - 1)));
    return pixels;
}

// Weights of the pixels of a tile's anomaly map: a squared sine that decreases towards the border.
static cv::Mat window(int height, int width) {
    cv::Mat weights(height, width, CV_32F);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            weights.at<float>(y, x) =
                float(std::pow(std::sin(CV_PI * (y + 0.5) / height) * std::sin(CV_PI * (x + 0.5) / width), 2));
    return weights;
}

// Read an image: BGR, 8 bits, upright as its EXIF orientation says. Returns what is wrong with it, or nothing.
static std::string read(const char* path, cv::Mat& image) {
    if (cv::imcount(path) > 1) return "has several pages; write each to its own file";
    image = cv::imread(path, cv::IMREAD_COLOR | cv::IMREAD_ANYDEPTH);  // the depth is kept
    if (image.empty()) image = cv::imread(path, cv::IMREAD_UNCHANGED);  // gray floats cannot become color
    if (image.empty()) return "cannot be decoded as an image";
    if (image.depth() != CV_8U) return "has more than 8 bits; write it with 8, or use detect.py";
    char start[2] = {0, 0};
    std::ifstream(path, std::ios::binary).read(start, 2);
    if (start[0] == start[1] && (start[0] == 'I' || start[0] == 'M') && cv::imread(path, cv::IMREAD_UNCHANGED).channels() == 4)
        return "is a TIFF with alpha, which OpenCV multiplies the colors by; write it without, or use detect.py";
    return "";
}

int main(int argc, char** argv) {
    const bool tiled = argc > 5 && std::string(argv[5]) == "--tiles";
    const int first = tiled ? 9 : 5;
    if (argc <= first) {
        std::fprintf(stderr, "usage: %s MODEL THRESHOLD HEIGHT WIDTH [--tiles HEIGHT WIDTH OVERLAP] IMAGE...\n", argv[0]);
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
        // float32: by default OpenVINO computes in bfloat16 on some processors, and scores would differ slightly.
        auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
        auto request = compiled.create_infer_request();
        for (int i = first; i < argc; ++i) {
            cv::Mat image, resized, smooth;
            const std::string problem = read(argv[i], image);
            if (!problem.empty()) {
                std::fprintf(stderr, "failed    -        %s: %s\n", argv[i], problem.c_str());
                status = 2;
                continue;
            }
            cv::resize(image, resized, size, 0, 0, cv::INTER_LINEAR);
            cv::Mat map = cv::Mat::zeros(size, CV_32F), sum = cv::Mat::zeros(size, CV_32F);
            for (int top : starts(size.height, tile.height, overlap))
                for (int left : starts(size.width, tile.width, overlap)) {
                    const cv::Rect area(left, top, tile.width, tile.height);
                    cv::Mat part = resized(area).clone();
                    request.set_input_tensor(ov::Tensor(
                        ov::element::u8, {1, size_t(tile.height), size_t(tile.width), 3}, part.data));
                    request.infer();
                    const cv::Mat tile_map(tile, CV_32F, request.get_tensor("anomaly_map").data<float>());
                    map(area) += tile_map.mul(weight);
                    sum(area) += weight;
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
