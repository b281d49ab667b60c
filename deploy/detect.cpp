// Detect anomalies in images of 8 bits with an exported model; detect.hpp has it as a class.
//
//     ./detect bottle_60_int8.xml images/*.png
//     ./detect --threshold 0.2 bottle_60_int8.xml images/*.png
//
// Prints a line for each image: result, score, path. Exit status: 0 all nominal, 1 at least one anomalous, 2 an error.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>

#include "detect.hpp"

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
    const bool has_threshold = argc > 1 && std::string(argv[1]) == "--threshold";
    const int first = has_threshold ? 3 : 1;
    if (argc < first + 2) {
        std::fprintf(stderr, "usage: %s [--threshold VALUE] MODEL IMAGE...\n", argv[0]);
        return 2;
    }
    int status = 0;
    try {
        const double threshold = has_threshold ? std::stod(argv[2]) : std::nan("");
        if (has_threshold && std::isnan(threshold)) throw std::runtime_error("--threshold: not a number");
        draem::Detector detector(argv[first], threshold);
        for (int i = first + 1; i < argc; ++i) {
            try {
                cv::Mat image;
                const std::string problem = read(argv[i], image);
                if (!problem.empty()) throw std::runtime_error(problem);
                const draem::Detection found = detector(image);
                std::printf("%-9s %.6f %s\n", found.is_anomalous ? "anomalous" : "nominal", found.score, argv[i]);
                status = std::max(status, found.is_anomalous ? 1 : 0);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "failed    -        %s: %s\n", argv[i], error.what());
                status = 2;
            }
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
    return status;
}
