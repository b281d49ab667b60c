// Runs cases with detect.hpp: cases MODEL MAPS IMAGE... prints a line for each image (verdict, score, regions), and
// appends its anomaly map to the file MAPS, as floats.

#include <cstdio>
#include <fstream>

#include "detect.hpp"

int main(int argc, char** argv) {
    draem::Detector detector(argv[1]);
    std::ofstream maps(argv[2], std::ios::binary);
    for (int i = 3; i < argc; ++i) {
        const draem::Detection found = detector(cv::imread(argv[i]));
        std::printf("%s %.9f", found.is_anomalous ? "anomalous" : "nominal", found.score);
        for (const draem::Region& region : found.regions)
            std::printf(" %d,%d,%d,%d,%d", region.x0, region.y0, region.x1, region.y1, region.area);
        std::printf("\n");
        maps.write(reinterpret_cast<const char*>(found.anomaly_map.data), found.anomaly_map.total() * sizeof(float));
    }
}
